"""The command line that every package has. Imports no torch: `--help` is instant.

    ssl-mae train | evaluate | embed | predict | show | push | info | export | compare

Exit codes: 0, done; 2, something that was given cannot be used; 3, a run had to end (loss not
finite, collapse, disk); 75, the run was told to stop and has saved: repeat the command to resume;
130, stopped by Ctrl-C outside a run; 141, nobody reads the output any more. 1 is a bug, with its
traceback. An error is one line on stderr. Results go to stdout, as lines or, with --json, as one
JSON object.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import io
import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import IO, Annotated, Any, Literal, get_args, get_origin

import tyro

from ssl_core.bounds import bounds_of, field_hints
from ssl_core.config import ConfigError, TrainConfig, from_dict, to_dict
from ssl_core.errors import InputError
from ssl_core.hub.format import SECTION
from ssl_core.method import Recipe, Verb, load
from ssl_train.asked import AUTO, CHOSEN, Asked
from ssl_train.cli.config_file import read_file
from ssl_train.cli.verbs import VERBS, Output, Train
from ssl_train.domains import VIEWS, views_of
from ssl_train.errors import TrainingError
from ssl_train.options import RunOptions
from ssl_train.stop import EXIT_REQUEUE, Interrupted

EXIT_INTERRUPT = 130
"""Exit code of a command that Ctrl-C stopped outside a run, as shells have it."""
EXIT_PIPE = 141
"""Exit code of a command whose output nobody reads any more, as shells have it."""
BOLD, RED, YELLOW = "\033[1m", "\033[91m", "\033[93m"


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
    names = [*shared_verbs(recipes), *verbs]
    if verb not in names:
        near = difflib.get_close_matches(verb, names, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        _tell(program, f"no command {verb!r}{meant} There are {', '.join(names)}")
        return 2
    usual, warnings.formatwarning = warnings.formatwarning, _formatted(program, warnings.formatwarning)
    try:
        own = verbs.get(verb)
        allowed = own.methods if own is not None else ()
        recipe, rest = _choose_method(recipes, rest, allowed[0] if allowed else None)
        if allowed and recipe.name not in allowed:
            raise InputError(f"{verb} is for {' and '.join(allowed)}, not for {recipe.name}")
        methods = ", ".join(allowed or recipes)
        about = f"\n\nMethods (--method): {methods}." if "," in methods else ""
        output, given = _parse(f"{program} {verb}", verb, own, recipe, rest, about)
        return _run(verb, own, recipe, output, given)
    except InputError as error:
        _tell(program, error)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does: nobody is to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:  # without a file it is a bug, and keeps its traceback
        if error.filename is None and not isinstance(error, FileNotFoundError):
            raise
        _tell(program, error)
        return 2
    except TrainingError as error:
        _tell(program, error)
        return 3
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: told to stop, step {stopped.step:,} is saved: the same command goes on", file=sys.stderr)
        return EXIT_REQUEUE
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return EXIT_INTERRUPT
    finally:
        warnings.formatwarning = usual


def shared_verbs(recipes: Mapping[str, Recipe]) -> dict[str, type]:
    """The commands of `VERBS` that these recipes have. `predict` is for methods whose samples are
    images alone."""
    images = any(recipe.blank == Recipe.blank for recipe in recipes.values())
    return {verb: cls for verb, cls in VERBS.items() if images or verb != "predict"}


def _run(verb: str, own: Verb | None, recipe: Recipe, output: Output, given: list[Any]) -> int:
    """Run what was parsed. It prints its result, and returns it for --json."""
    from ssl_train import log

    with ExitStack() as stack:
        if output.quiet:
            stack.enter_context(log.quietly())
        if output.json:  # nothing but the object on stdout, and its lines are not needed twice
            stack.enter_context(redirect_stdout(io.StringIO() if output.quiet else sys.stderr))
        if own is not None:
            facts = load(own.run)(recipe, *given)  # loads torch, which --help does without
        else:
            from ssl_train.cli import commands

            commands.tell_step(given[0])
            facts = getattr(commands, verb)(recipe, *given)
    if output.json and os.environ.get("RANK", "0") == "0":
        print(json.dumps(facts, ensure_ascii=False, default=str))
    sys.stdout.flush()
    return 0


def coloured(text: str, code: str, stream: IO[str]) -> str:
    """`text` in the colour `code` if `stream` takes colours, else without any.

    A terminal takes them, and what FORCE_COLOR says does; NO_COLOR (no-color.org) wins over both.
    """
    wanted = stream.isatty() and os.environ.get("TERM") != "dumb"
    if os.environ.get("NO_COLOR") or not (wanted or os.environ.get("FORCE_COLOR")):
        return re.sub(r"\033\[[\d;]*m", "", text)
    return f"{code}{text}\033[0m" if code else text


def _tell(program: str, error: Exception | str) -> None:
    """An error, on stderr."""
    print(coloured(f"{program}:", RED, sys.stderr), _in_words(error), file=sys.stderr)


def _in_words(error: Exception | Warning | str) -> str:
    """The message of an error or a warning, without the system's numbers of errors."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return re.sub(r"\[Errno -?\d+\] ", "", str(error))


def _formatted(program: str, usual: Callable[..., str]) -> Callable[..., str]:
    """`warnings.formatwarning` that shows a user a line instead of our source code."""

    def formatted(message: Any, category: type[Warning], *where: Any, **more: Any) -> str:
        if category is UserWarning:
            return f"{coloured(f'{program}: warning:', YELLOW, sys.stderr)} {_in_words(message)}\n"
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


def _parse(
    program: str, verb: str, own: Verb | None, recipe: Recipe, arguments: list[str], more: str
) -> tuple[Output, list[Any]]:
    """(how to tell the result, what the verb's command is called with besides the recipe).

    `more` is said in the help.
    """
    cls: Any = VERBS[verb] if own is None else load(own.arguments)
    about = " ".join((cls.__doc__ or "").split()) + more
    if own is not None or verb not in ("train", "info"):
        command, output = _flags(program, about, [_Part(cls), _Part(Output)], arguments)
        return Output(**output), [cls(**command)]
    training = verb == "train"
    known, _ = _peek(arguments, "--preset", "--data")
    # A method that states no rule of its own starts from its paper's preset.
    chooses = known["preset"] == AUTO or (known["preset"] is None and recipe.fitted is not None)
    automatic = training and known["data"] is not None and chooses
    asked = defaults(recipe, arguments, built_in=training)
    base, typed = asked.preset, dict(asked.typed)
    about += f"\n\nThe defaults shown are those of {_origin(arguments, built_in=training)}."
    settings = _Part(type(base), vars(base) | typed, CHOSEN if automatic else (), recipe.name)
    parts = [_Part(cls), settings, _Part(Output), *([_Part(RunOptions)] if training else [])]
    command, method, output, *options = _flags(program, about, parts, arguments)
    typed |= {name: value for name, value in method.items() if _is_typed(name, arguments)}
    # rules between fields are left to the config that is made of the data and of what was typed
    given = cls(**command)
    if not training:
        return Output(**output), [given, Asked(base, typed)]
    asked = Asked(None if automatic else base, typed, given.minutes, given.max_steps)
    return Output(**output), [given, asked, RunOptions(**options[0])]


def _is_typed(field: str, arguments: Sequence[str]) -> bool:
    """Whether the flag of a config's field is among the arguments."""
    flags = {f"--{word}{name}" for word in ("", "no-") for name in (field, field.replace("_", "-"))}
    return any(argument.partition("=")[0] in flags for argument in arguments)


@dataclass(frozen=True)
class _Part:
    """The fields of a dataclass, as flags."""

    cls: type[Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    """what fields start from, other than their defaults"""
    chosen: Sequence[str] = ()
    """fields whose default help shows as "chosen from the data\""""
    method: str = ""
    """the method of which `cls` is the config"""


def _flags(program: str, about: str, parts: Sequence[_Part], arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The values of the fields of each part: those in `arguments`, else those that they start from.

    Help has the flags under headings (`_heading`). Besides a field's docstring it says its bounds,
    "(above 0, default: 100)", no default where it is None or empty, the name of a value without a
    flag, and STR instead of {None}|STR.
    """
    groups: dict[str, list[tuple[str, Any, Any]]] = {"": []}
    for part in parts:
        docs, hints = _docstrings(part.cls), field_hints(part.cls)
        for stated in dataclasses.fields(part.cls):
            name, kind = stated.name, hints[stated.name][0]
            said = _hint(bounds_in_words(*hints[name]), name in part.chosen)
            shown = tyro.conf.arg(metavar=_metavar(name, kind), help=docs.get(name), help_behavior_hint=said)
            # a setting may be true in a preset or a file: its flag has a --no-… beside it
            marks = () if part.method else (tyro.conf.FlagCreatePairsOff,)
            start = field(default=part.values.get(name, stated.default))
            groups.setdefault(_heading(name, part), []).append((name, Annotated[(kind, shown, *marks)], start))
    if len(parts) > 2:
        groups[""].sort(key=lambda flag: FIRST.index(flag[0]) if flag[0] in FIRST else -1)
    ordered = sorted(groups, key=lambda heading: ORDER.index(heading if heading in ORDER else "METHOD"))
    structs = [
        (
            f"group{i}",
            Annotated[make_dataclass(f"Group{i}", groups[heading], kw_only=True), tyro.conf.arg(name=heading)],
        )
        for i, heading in enumerate(ordered)
    ]
    parsed = _tyro(make_dataclass("Arguments", structs), program, about, arguments)
    found = {name: value for group in vars(parsed).values() for name, value in vars(group).items()}
    return [{stated.name: found[stated.name] for stated in dataclasses.fields(part.cls)} for part in parts]


FIRST = (
    "data", "out", "preset", "epochs", "minutes", "max_steps", "batch_size", "image_size", "context", "init", "config",
    "seed", "device", "workers",
)  # fmt: skip
"""The flags of `train` that matter first; the rest stand below them, under headings."""
HEADINGS = {
    "data": ("held_out", "group", "max_pixels", "exact_decode"),
    "views": (
        "views",
        "in_channels", "mean", "std", "crop_pct", "crop_scale", "flip", "turn", "jitter", "jitter_p",
        "grayscale", "grayscale_p", "blur_p", "blur_sigma", "solarize_p", "gamma", "noise",
        "band_drop_p", "stain", "color_drop", "global_crops", "global_scale",
        "local_crops", "local_size", "local_scale", "puzzle_size", "tile_size",
    ),
    "network": (
        "patch_size", "backbone", "tower", "dim", "depth", "heads", "mlp_ratio", "layer_norm_eps", "pos_interp", "pool",
        "drop_path", "width", "small_stem", "stages", "vit_pool", "vit_mlp_ratio", "vit_layer_norm_eps", "text_dim",
        "text_depth", "text_heads", "text_pool", "embed_dim", "activation", "head_dim", "decoder_dim", "decoder_depth",
        "decoder_heads", "swiglu", "registers", "layer_scale", "shared_bias", "final_norm", "vocab_size",
        "context_length",
    ),
    "optimiser": tuple(stated.name for stated in dataclasses.fields(TrainConfig)),
    "saving": ("log_every", "checkpoint_minutes", "keep_every", "track"),
}  # fmt: skip
"""Headings of `--help` and the fields below them. The other settings of a method stand under its
name, what remains is about the machine."""
ORDER = ("", "data", "views", "network", "METHOD", "optimiser", "machine", "saving", "output")
"""The order of the headings; METHOD stands for the method's name."""


def _heading(name: str, part: _Part) -> str:
    """Under which heading a field stands; "" is that of the first flags."""
    if part.cls is Output:
        return "output"
    if name in FIRST or not (part.method or part.cls in (RunOptions, Train)):
        return ""
    found = next((heading for heading, names in HEADINGS.items() if name in names), None)
    return found or part.method or "machine"


def _tyro(cls: type[Any], program: str, about: str, arguments: Sequence[str]) -> Any:
    """What `tyro.cli` makes of the arguments. What it says is coloured where we would."""
    said, faults = _Terminal(), _Terminal()
    try:
        with redirect_stdout(said), redirect_stderr(faults):
            return tyro.cli(cls, args=arguments, prog=program, description=about, config=(tyro.conf.OmitArgPrefixes,))
    finally:
        sys.stdout.write(coloured(said.getvalue().replace(RED, BOLD), "", sys.stdout))
        # a positional argument by its name in the help, without the group that it is in
        named = re.sub(r"'group\d+\.([\w-]+)'", lambda found: found[1].upper().center(len(found[0])), faults.getvalue())
        sys.stderr.write(coloured(named, "", sys.stderr))


class _Terminal(io.StringIO):
    """Text for stdout or stderr, as a terminal would get it."""

    encoding = property(lambda self: (sys.__stdout__ or sys.stderr).encoding)  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """Field -> the string below it in the source, on one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for stated, below in itertools.pairwise(_bodies(base.__module__).get(base.__name__, [])):
            if isinstance(stated, ast.AnnAssign) and isinstance(below, ast.Expr):
                docs[ast.unparse(stated.target)] = " ".join(ast.literal_eval(below.value).split())
    return docs


@cache
def _bodies(module: str) -> dict[str, list[ast.stmt]]:
    """What stands in the classes of a module, by their names; nothing where it has no source."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):
        return {}
    return {found.name: found.body for found in tree.body if isinstance(found, ast.ClassDef)}


def _hint(stated: str, chosen: bool) -> Callable[[str], str]:
    """What stands behind a field's help, as a function of its default in words."""

    def hint(default: str) -> str:
        known = [stated] if stated else []
        if chosen:
            known.append("default: chosen from the data")
        elif default not in ("", "None", "False"):  # None means that the help says what is done
            known.append(f"default: {default}")
        return f"({', '.join(known)})" if known else " "

    return hint


def _metavar(name: str, hint: Any) -> str | None:
    """How help names a value: a positional one by its field, an optional one or a list by its type.
    None for tyro's own way."""
    kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    optional = type(None) in get_args(kind)
    options = [option for option in get_args(kind) if option is not type(None)] if optional else [kind]
    if tyro.conf.Positional[str].__metadata__[0] in marks:  # type: ignore[attr-defined]
        word = name.replace("_", "-").upper()
        return f"[{word}]" if optional else f"{word} ..." if get_origin(kind) is tuple else word
    plain, several = options[0], Ellipsis in get_args(options[0])
    if len(options) > 1 or not (optional or several):
        return None
    plain = get_args(plain)[0] if several else plain
    plain = get_args(plain)[0] if get_origin(plain) is Annotated else plain
    word = {str: "STR", int: "INT", float: "FLOAT"}.get(plain)
    if get_origin(plain) is Literal:
        word = f"{{{','.join(map(str, get_args(plain)))}}}"
    return f"{word} ..." if several else word


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
    known, _ = _peek(arguments, "--preset", "--config", "--init", "--data", "--views")
    named = None if known["preset"] == AUTO else known["preset"]
    base = recipe.preset(named, built_in=built_in and known["data"] is None)
    typed = views_of(base, known["views"]) if known["views"] in VIEWS else {}
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
    for verb, cls in {**shared_verbs(recipes), **{name: load(own.arguments) for name, own in verbs.items()}}.items():
        lines.append(f"  {verb:10s}{' '.join((cls.__doc__ or '').split())}")
    if len(recipes) > 1:
        lines += ["", f"methods (--method): {', '.join(recipes)}"]
    for recipe in recipes.values():
        lines.append(f"presets of {recipe.name} (--preset): {', '.join(recipe.presets)}")
    return "\n".join(lines)


def _version(program: str) -> str:
    from importlib.metadata import version

    return f"{program} {version(program)}, ssl-core {version('ssl-core')}"
