"""The command line that every package has. Imports no torch: `--help` is instant.

    ssl-mae train | evaluate | embed | predict | show | push | info | export

Exit codes: 0, done; 2, something that was given cannot be used; 3, a run had to end (loss not
finite, collapse, disk); 75, the run was told to stop and has saved: repeat the command to resume.
An error is one line on stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro

from ssl_core.bounds import bounds_of, field_hints
from ssl_core.config import ConfigError, TrainConfig, from_dict, to_dict
from ssl_core.errors import InputError
from ssl_core.hub.format import SECTION
from ssl_core.method import Recipe, Verb, load
from ssl_train.asked import AUTO, CHOSEN, Asked
from ssl_train.cli.config_file import read_file
from ssl_train.cli.verbs import VERBS
from ssl_train.errors import TrainingError
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
    usual, warnings.formatwarning = warnings.formatwarning, _formatted(program, warnings.formatwarning)
    try:
        own = verbs.get(verb)
        allowed = own.methods if own is not None else ()
        recipe, rest = _choose_method(recipes, rest, allowed[0] if allowed else None)
        if allowed and recipe.name not in allowed:
            raise InputError(f"{verb} is for {' and '.join(allowed)}, not for {recipe.name}")
        if own is not None:
            typed = tyro.cli(described(load(own.arguments)), args=rest, prog=f"{program} {verb}")
            return load(own.run)(recipe, typed) or 0  # loads torch, which --help does without
        parsed = _parse(f"{program} {verb}", verb, recipe, rest)
        from ssl_train.cli import commands

        commands.tell_step(parsed[0])
        return getattr(commands, verb)(recipe, *parsed) or 0
    except InputError as error:
        print(f"{program}: {_in_words(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # without a file it is a bug, and keeps its traceback
        if error.filename is None and not isinstance(error, FileNotFoundError):
            raise
        print(f"{program}: {_in_words(error)}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"{program}: {_in_words(error)}", file=sys.stderr)
        return 3
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: told to stop, step {stopped.step:,} is saved: the same command goes on", file=sys.stderr)
        return EXIT_REQUEUE
    finally:
        warnings.formatwarning = usual


def _in_words(error: Exception | Warning | str) -> str:
    """The message of an error or a warning, without the system's numbers of errors."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return re.sub(r"\[Errno -?\d+\] ", "", str(error))


def _formatted(program: str, usual: Callable[..., str]) -> Callable[..., str]:
    """`warnings.formatwarning` that shows a user a line instead of our source code."""

    def formatted(message: Any, category: type[Warning], *where: Any, **more: Any) -> str:
        if category is UserWarning:
            return f"{program}: warning: {_in_words(message)}\n"
        return usual(message, category, *where, **more)

    return formatted


def _choose_method(
    recipes: Mapping[str, Recipe], arguments: list[str], default: str | None = None
) -> tuple[Recipe, list[str]]:
    """(recipe, the other arguments): the recipe that --method names, else that of the weights in
    the arguments."""
    first = next(iter(recipes))
    if len(recipes) == 1:
        return recipes[first], arguments
    known, rest = _peek(arguments, "--method")
    name = known["method"] or method_of(recipes, rest) or default or first
    if name not in recipes:
        raise ConfigError(f"no method {name!r}; there are {', '.join(recipes)}")
    return recipes[name], rest


def method_of(recipes: Mapping[str, Recipe], arguments: list[str]) -> str | None:
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
            own = read_file(file).get(SECTION)
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
    cls = VERBS[verb]
    if verb not in ("train", "info"):
        return (tyro.cli(described(cls), args=arguments, prog=program),)
    training = verb == "train"
    known, _ = _peek(arguments, "--preset", "--data")
    # A method that states no rule of its own starts from its paper's preset.
    chooses = known["preset"] == AUTO or (known["preset"] is None and recipe.fitted is not None)
    automatic = training and known["data"] is not None and chooses
    asked = defaults(recipe, arguments, built_in=training)
    base, typed = asked.preset, dict(asked.typed)
    about = f"{(type(base).__doc__ or '').partition('. ')[0].rstrip('.')}. The defaults shown are those of "
    about += f"{_origin(arguments, built_in=training)}."
    own: Any = described(cls, "")
    shown: Any = described(type(base), about, hidden=CHOSEN if automatic else ())
    # rules between fields are left to the config that is made of the data and of what was typed
    start: Any = object.__new__(shown)
    vars(start).update(vars(base) | typed)
    fields = [("command", own, own()), ("method", shown, start)]
    if training:
        options = described(RunOptions)
        fields.append(("run", options, options()))
    Arguments = make_dataclass("Arguments", fields, frozen=True)
    flat, description = (tyro.conf.OmitArgPrefixes,), " ".join((cls.__doc__ or "").split())
    parsed = tyro.cli(Arguments, args=arguments, prog=program, description=description, config=flat)
    typed |= {name: value for name, value in vars(parsed.method).items() if _is_typed(name, arguments)}
    if not training:
        return parsed.command, Asked(base, typed)
    asked = Asked(None if automatic else base, typed, parsed.command.minutes, parsed.command.max_steps)
    return parsed.command, asked, RunOptions(**vars(parsed.run))


def _is_typed(field: str, arguments: Sequence[str]) -> bool:
    """Whether the flag of a config's field is among the arguments."""
    flags = {f"--{word}{name}" for word in ("", "no-") for name in (field, field.replace("_", "-"))}
    return any(argument.partition("=")[0] in flags for argument in arguments)


def described(cls: type[Any], about: str | None = None, hidden: Sequence[str] = ()) -> type[Any]:
    """A subclass of the dataclass `cls` with readable help; its instances have the same fields.

    tyro takes a field's help from its docstring. The annotations of the subclass add the rest: the
    bounds, "(above 0, default: 100)", no default where it is None or empty, the name of a value
    without a flag, and STR instead of {None}|STR. `about` replaces the docstring. The
    default of the `hidden` fields is shown as "chosen from the data".
    """
    annotations = {}
    for name, hints in field_hints(cls).items():
        shown = tyro.conf.arg(
            metavar=_metavar(name, hints[0]), help_behavior_hint=_hint(bounds_in_words(*hints), name in hidden)
        )
        annotations[name] = Annotated[hints[0], shown]
    same = {"__doc__": cls.__doc__ if about is None else about, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), {**same, "__annotations__": annotations})


def _hint(stated: str, chosen: bool) -> Callable[[str], str]:
    """What stands behind a field's help, as a function of its default in words."""

    def hint(default: str) -> str:
        known = [stated] if stated else []
        if chosen:
            known.append("default: chosen from the data")
        elif default not in ("", "None"):  # None means that the help says what is done
            known.append(f"default: {default}")
        return f"({', '.join(known)})" if known else " "

    return hint


def _metavar(name: str, hint: Any) -> str | None:
    """How help names a value: a positional one by its field, an optional one by its type. None for
    tyro's own way."""
    kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    options = [option for option in get_args(kind) or (kind,) if option is not type(None)]
    optional = type(None) in get_args(kind)
    if tyro.conf.Positional[str].__metadata__[0] in marks:  # type: ignore[attr-defined]
        word = name.replace("_", "-").upper()
        return f"[{word}]" if optional else f"{word} ..." if get_origin(kind) is tuple else word
    if not optional or len(options) > 1:
        return None
    plain = get_args(options[0])[0] if get_origin(options[0]) is Annotated else options[0]
    return {str: "STR", int: "INT", float: "FLOAT"}.get(plain)


def bounds_in_words(*hints: Any) -> str:
    """The bounds of a value and of its elements, in words; empty if the types state none."""
    found = []
    for hint in hints:
        inner, own = get_args(hint), ""
        if get_origin(hint) is Annotated:
            inner, (_, own) = inner[:1], bounds_of(inner[1:])
        found += [bounds_in_words(*inner), own]
    return ", ".join(dict.fromkeys(filter(None, found)))


def defaults(recipe: Recipe, arguments: list[str], *, built_in: bool = True) -> Asked:
    """What flags start from: the preset, then the architecture of --init, then the --config file.
    Without a name the preset is `demo` for the built-in data, if `built_in`, else the paper's."""
    known, _ = _peek(arguments, "--preset", "--config", "--init", "--data")
    named = None if known["preset"] == AUTO else known["preset"]
    base = recipe.preset(named, built_in=built_in and known["data"] is None)
    typed: dict[str, Any] = {}
    if known["init"] is not None:
        method = load(recipe.method).sketched(known["init"])
        stored = to_dict(method.config)
        typed |= {name: stored[name] for name in method.architecture()}
    if known["config"] is not None:
        typed |= read_file(known["config"])
    # without the preset's warm-up, which is fitted to the length of the run
    preset = {**to_dict(base), "warmup_epochs": 0.0} if isinstance(base, TrainConfig) else to_dict(base)
    read = from_dict(type(base), {**preset, **typed})
    return Asked(base, {name: getattr(read, name) for name in typed})


def _origin(arguments: list[str], *, built_in: bool) -> str:
    """Where `defaults` takes its values from, in words for --help."""
    known, _ = _peek(arguments, "--preset", "--config", "--init", "--data")
    origin = "the paper's recipe, except where the data decide"
    if known["preset"] not in (None, AUTO):
        origin = f"--preset {known['preset']}"
    elif built_in and known["data"] is None:
        origin = "--preset demo, as no --data is given; with --data they are chosen from it: add it before --help"
    changed = [f"{flag} {known[flag[2:]]}" for flag in ("--init", "--config") if known[flag[2:]] is not None]
    return ", changed by ".join([origin, *changed])


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
