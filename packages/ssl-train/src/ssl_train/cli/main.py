"""The command line that every package has. Imports no torch: `--help` is instant.

    ssl-mae train | evaluate | embed | show | push | info | export

Exit codes: 0, done; 2, something that was given cannot be used; 3, a run had to end (loss not
finite, collapse, disk); 75, the run was told to stop and has saved: repeat the command to resume.
An error is one line on stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro

from ssl_core.bounds import bounds_of, field_hints
from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_core.errors import InputError, TrainingError
from ssl_core.method import Recipe, Verb, load
from ssl_train.asked import AUTO, CHOSEN, Asked
from ssl_train.cli.config_file import read_file
from ssl_train.cli.verbs import VERBS, Train
from ssl_train.options import RunOptions
from ssl_train.stop import EXIT_REQUEUE, Interrupted


def main(
    recipes: Mapping[str, Recipe], arguments: Sequence[str] | None = None, verbs: Mapping[str, Verb] | None = None
) -> int:
    """Run one command and return its exit code.

    `recipes` are the package's methods by name, the first one the default; `verbs` its own
    commands.
    """
    verbs = verbs or {}
    for stream in (sys.stdout, sys.stderr):  # file names may hold bytes that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = next(iter(recipes.values())).package.replace("_", "-")
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        print(_version(program) if arguments[:1] == ["--version"] else _overview(program, recipes, verbs))
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS and verb not in verbs:
        print(f"{program}: no command {verb!r}; there are {', '.join([*VERBS, *verbs])}", file=sys.stderr)
        return 2
    try:
        own = verbs.get(verb)
        allowed = own.methods if own is not None else ()
        recipe, rest = _choose_method(recipes, rest, allowed[0] if allowed else None)
        if allowed and recipe.name not in allowed:
            raise InputError(f"{verb} is for {' and '.join(allowed)}, not for {recipe.name}")
        if own is not None:
            typed = tyro.cli(with_bounds(load(own.arguments)), args=rest, prog=f"{program} {verb}")
            return load(own.run)(recipe, typed) or 0  # loads torch, which --help does without
        parsed = _parse(f"{program} {verb}", verb, recipe, rest)
        from ssl_train.cli import commands

        commands.tell_step(parsed[0])
        return getattr(commands, verb)(recipe, *parsed) or 0
    except (InputError, FileNotFoundError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 3
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: told to stop, step {stopped.step:,} is saved: the same command goes on", file=sys.stderr)
        return EXIT_REQUEUE


def _choose_method(
    recipes: Mapping[str, Recipe], arguments: list[str], default: str | None = None
) -> tuple[Recipe, list[str]]:
    """(recipe, the other arguments): the recipe that --method names, else that of the weights in
    the arguments."""
    first = next(iter(recipes))
    if len(recipes) == 1:
        return recipes[first], arguments
    known, rest = _peek(arguments, "--method")
    name = known["method"] or _method_of(recipes, rest) or default or first
    if name not in recipes:
        raise ConfigError(f"no method {name!r}; there are {', '.join(recipes)}")
    return recipes[name], rest


def _method_of(recipes: Mapping[str, Recipe], arguments: list[str]) -> str | None:
    """Name of the method whose weights the arguments name, if they lie in a folder of ours.

    The weights are the value of --init or --weights, else an argument without a flag: a folder, or
    its weights file.
    """
    given, _ = _peek(arguments, "--init", "--weights")
    positional = [a for flag, a in zip(["", *arguments], arguments, strict=False) if not flag.startswith("-")]
    for argument in (*given.values(), *positional):
        path = Path(argument or "")
        file = (path.parent if path.name == "model.safetensors" else path) / "config.json"
        if argument and not argument.startswith("-") and file.is_file():
            own = read_file(file).get("ssl")
            stored = own.get("method") if isinstance(own, dict) else None
            return next((name for name, recipe in recipes.items() if recipe.method == stored), None)
    return None


def _peek(arguments: list[str], *flags: str) -> tuple[dict[str, str | None], list[str]]:
    """(values of a few flags, the other arguments), before the real parser knows its defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        parser.add_argument(flag)
    try:
        values, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # the real parser will say what is wrong
        return {flag.removeprefix("--"): None for flag in flags}, arguments
    return vars(values), rest


def _parse(program: str, verb: str, recipe: Recipe, arguments: list[str]) -> tuple[Any, ...]:
    """What the verb's command is called with."""
    if verb != "train":
        return (tyro.cli(VERBS[verb], args=arguments, prog=program),)
    known, _ = _peek(arguments, "--preset", "--data")
    automatic = known["data"] is not None and known["preset"] in (None, AUTO)
    asked = defaults(recipe, arguments)
    base, typed = asked.preset, dict(asked.typed)
    shown = with_bounds(type(base), hidden=CHOSEN if automatic else ())
    options = with_bounds(RunOptions)
    # rules between fields are left to the config that is made of the data and of what was typed
    start: Any = object.__new__(shown)
    vars(start).update(vars(base) | typed)
    fields = [("run", Train, Train()), ("config", shown, start), ("options", options, options())]
    Arguments = make_dataclass("Arguments", fields, frozen=True)
    flat = (tyro.conf.OmitArgPrefixes,)
    parsed = tyro.cli(Arguments, args=arguments, prog=program, description=Train.__doc__, config=flat)
    typed |= {name: value for name, value in vars(parsed.config).items() if _is_typed(name, arguments)}
    asked = Asked(None if automatic else base, typed, parsed.run.minutes, parsed.run.max_steps)
    return parsed.run, asked, RunOptions(**vars(parsed.options))


def _is_typed(field: str, arguments: Sequence[str]) -> bool:
    """Whether the flag of a config's field is among the arguments."""
    flags = {f"--{word}{name}" for word in ("", "no-") for name in (field, field.replace("_", "-"))}
    return any(argument.partition("=")[0] in flags for argument in arguments)


def with_bounds(cls: type[Any], hidden: Sequence[str] = ()) -> type[Any]:
    """A subclass of the dataclass `cls` whose `--help` shows bounds: "(above 0, default: 100)", and
    "chosen from the data" as the default of the `hidden` fields.

    tyro takes a field's help from its docstring and adds `help_behavior_hint`, by default the
    default value. The subclass differs in its annotations alone, so its instances have the same
    fields as those of `cls`.
    """
    annotations = {}
    for name, hints in field_hints(cls).items():
        stated, default = bounds_in_words(*hints), "chosen from the data" if name in hidden else "{}"
        if stated or name in hidden:
            hint = ", ".join(filter(None, [stated, f"default: {default}"]))
            annotations[name] = Annotated[hints[0], tyro.conf.arg(help_behavior_hint=f"({hint})".format)]
    same = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), {**same, "__annotations__": annotations})


def bounds_in_words(*hints: Any) -> str:
    """The bounds of a value and of its elements, in words; empty if the types state none."""
    found = []
    for hint in hints:
        inner, own = get_args(hint), ""
        if get_origin(hint) is Annotated:
            inner, (_, own) = inner[:1], bounds_of(inner[1:])
        found += [bounds_in_words(*inner), own]
    return ", ".join(dict.fromkeys(filter(None, found)))


def defaults(recipe: Recipe, arguments: list[str]) -> Asked:
    """What flags start from: the preset, then the architecture of --init, then the --config file.
    Without a name the preset is `demo` for the built-in data, else the paper's."""
    known, _ = _peek(arguments, "--preset", "--config", "--init", "--data")
    named = None if known["preset"] == AUTO else known["preset"]
    base = recipe.preset(named, built_in=known["data"] is None)
    typed: dict[str, Any] = {}
    if known["init"] is not None:
        method = load(recipe.method).sketched(known["init"])
        stored = to_dict(method.config)
        typed |= {name: stored[name] for name in method.architecture()}
    if known["config"] is not None:
        typed |= read_file(known["config"])
    # without the preset's warm-up, which is fitted to the length of the run
    read = from_dict(type(base), {**to_dict(base), "warmup_epochs": 0.0, **typed})
    return Asked(base, {name: getattr(read, name) for name in typed})


def _overview(program: str, recipes: Mapping[str, Recipe], verbs: Mapping[str, Verb]) -> str:
    lines = [f"usage: {program} COMMAND [options]      {program} COMMAND --help", ""]
    for verb, cls in {**VERBS, **{name: load(own.arguments) for name, own in verbs.items()}}.items():
        lines.append(f"  {verb:10s}{' '.join((cls.__doc__ or '').split())}")
    if len(recipes) > 1:
        lines += ["", f"methods (--method): {', '.join(recipes)}"]
    for recipe in recipes.values():
        lines.append(f"presets of {recipe.name} (--preset): {', '.join(recipe.presets)}")
    return "\n".join(lines)


def _version(program: str) -> str:
    from importlib.metadata import version

    return f"{program} {version(program)}, ssl-core {version('ssl-core')}"
