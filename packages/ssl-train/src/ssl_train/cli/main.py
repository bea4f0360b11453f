"""The command line that every package has. Imports no torch: `--help` is instant.

    ssl-mae train | evaluate | embed | show | push | info | export

Exit codes: 0 done; 2 something that was given cannot be used; 3 a run had to end (loss not finite, collapse, disk);
75 the run was told to stop and has saved, the same command goes on with it. Errors are one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from ssl_core.config import ConfigError, from_dict, read_file, to_dict
from ssl_core.errors import InputError, TrainingError
from ssl_core.method import Recipe, Verb, load
from ssl_train.cli.bounds import with_bounds
from ssl_train.options import RunOptions
from ssl_train.stop import EXIT_REQUEUE, Interrupted


@dataclass(frozen=True)
class Train:
    """Pretrain without labels. With no --data it runs on the built-in data; the same command again goes on where it was
    stopped."""

    data: str | None = None
    """images: a folder (recursive), CSV of paths and labels, .npz, torchvision:NAME, hf:NAME; text: a folder that `prepare`
    made; the built-in data by default"""
    out: str | None = None
    """run folder; runs/<method> by default"""
    preset: str | None = None
    """a named recipe; `demo` without --data, else the paper's"""
    config: str | None = None
    """TOML or JSON file of settings; flags win over it"""
    init: str | None = None
    """start from these weights: a run folder, a Hub id, an author's .pth; their architecture is taken"""


@dataclass(frozen=True)
class Evaluate:
    """Measure frozen features against the same network at random initialisation and against raw inputs."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """labelled data; a folder with train/ and test/ is split so, other data 80 to 20 by class"""
    test: str | None = None
    """labelled test data, when it is somewhere else"""
    protocols: tuple[Literal["knn", "linear", "fewshot", "finetune"], ...] = (
        "knn",
        "linear",
        "fewshot",
    )
    """what to measure; finetune trains the whole network, and the same one from scratch beside it"""
    shots: tuple[int, ...] = (5,)
    """labels per class of the few-shot protocol"""
    finetune_epochs: float = 100
    """epochs of the finetune protocol"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    workers: int = 0
    """loader processes"""
    out: str | None = None
    """folder of evaluation.json; the run folder by default"""


@dataclass(frozen=True)
class Embed:
    """Write features to an .npz: features (n, d) float32, paths, labels."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """images, as for train"""
    out: str = "features.npz"
    """the file to write"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    workers: int = 0
    """loader processes"""


@dataclass(frozen=True)
class Show:
    """Draw what the method has learned into figures/."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """images, as for train"""
    out: str | None = None
    """folder of the pictures; the run folder's figures/ by default"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Push:
    """Publish a run folder to the Hugging Face Hub in one commit."""

    folder: tyro.conf.Positional[str]
    """run folder"""
    repo_id: tyro.conf.Positional[str]
    """name on the Hub, me/my-model"""
    private: bool = False
    """make a new repository private"""
    revision: str | None = None
    """branch to push to"""
    create_pr: bool = False
    """open a pull request instead"""
    dry_run: bool = False
    """list the files and stop"""
    license: str | None = None
    """licence of the weights, apache-2.0 by default; those trained from CC-BY-NC weights keep cc-by-nc-4.0"""


@dataclass(frozen=True)
class Info:
    """Parameters, FLOPs, memory and a time estimate, before anything is started."""

    weights: tyro.conf.Positional[str | None] = None
    """run folder, Hub id or checkpoint file; else the preset is described"""
    preset: str | None = None
    """a named recipe"""
    data: str | None = None
    """images, to estimate the time of a run on them"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Export:
    """Write the encoder in another project's layout."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    out: tyro.conf.Positional[str]
    """folder to write"""
    to: str = "transformers"
    """whose layout: transformers, or another that the package writes"""


VERBS: dict[str, type] = {
    "train": Train, "evaluate": Evaluate, "embed": Embed, "show": Show, "push": Push, "info": Info, "export": Export,
}  # fmt: skip


def main(
    recipes: Mapping[str, Recipe], arguments: Sequence[str] | None = None, verbs: Mapping[str, Verb] | None = None
) -> int:
    """Run one command and return its exit code.

    `recipes` are the package's methods by name, the first one the default; `verbs` its own commands.
    """
    verbs = verbs or {}
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
    """The recipe that --method names, else that of the run folder among the arguments; and the other arguments."""
    first = next(iter(recipes))
    if len(recipes) == 1:
        return recipes[first], arguments
    known, rest = _peek(arguments, "--method")
    name = known["method"] or _method_of(recipes, rest) or default or first
    if name not in recipes:
        raise ConfigError(f"no method {name!r}; there are {', '.join(recipes)}")
    return recipes[name], rest


def _method_of(recipes: Mapping[str, Recipe], arguments: list[str]) -> str | None:
    """Name of the method whose weights are in --init, --weights or the first argument without a flag that is one of our
    folders, or the weights in one."""
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
    """Values of a few flags before the real parser knows its defaults, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        parser.add_argument(flag)
    try:
        values, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # the real parser will say what is wrong with it
        return {flag.removeprefix("--"): None for flag in flags}, arguments
    return vars(values), rest


def _parse(program: str, verb: str, recipe: Recipe, arguments: list[str]) -> tuple[Any, ...]:
    if verb != "train":
        return (tyro.cli(VERBS[verb], args=arguments, prog=program),)
    config = defaults(recipe, arguments)
    shown = with_bounds(type(config))
    options = with_bounds(RunOptions)
    fields = [("run", Train, Train()), ("config", shown, shown(**vars(config))), ("options", options, options())]
    Arguments = make_dataclass("Arguments", fields, frozen=True)
    parsed = tyro.cli(
        Arguments,
        args=arguments,
        prog=program,
        description=Train.__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return parsed.run, type(config)(**vars(parsed.config)), RunOptions(**vars(parsed.options))


def defaults(recipe: Recipe, arguments: list[str]) -> Any:
    """The config that flags start from: the preset, then the architecture of --init, then the --config file."""
    known, _ = _peek(arguments, "--preset", "--config", "--init", "--data")
    config = preset(recipe, known["preset"], built_in=known["data"] is None)
    values = to_dict(config)
    if known["init"] is not None:
        from ssl_train.cli.commands import architecture

        values |= architecture(recipe, known["init"])
    if known["config"] is not None:
        values |= read_file(known["config"])
    return from_dict(type(config), values)


def preset(recipe: Recipe, name: str | None, *, built_in: bool = False) -> Any:
    """A preset's config; `demo` for the built-in data, else the paper's defaults. ConfigError for an unknown name."""
    presets = recipe.presets
    if name is None:
        return presets["demo"]() if built_in else load(recipe.config)()
    if name not in presets:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]()


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
