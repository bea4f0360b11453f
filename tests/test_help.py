"""What `--help` and the flags of every command are, in every package."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
from projects import methods

from ssl_core.method import load
from ssl_train.cli import main as cli
from ssl_train.cli.verbs import VERBS, Output, Train
from ssl_train.options import RunOptions

ROOT = Path(__file__).resolve().parents[1]
MODULES = [project.module.name for project in methods(ROOT).values()]
RECIPES = {module: import_module(f"{module}.config").RECIPES for module in MODULES}
OWN = {
    module: import_module(f"{module}.verbs").VERBS
    for module in MODULES
    if (ROOT / "packages" / module.replace("_", "-") / "src" / module / "verbs.py").is_file()
}
CONFIGS = {name: load(recipe.config) for recipes in RECIPES.values() for name, recipe in recipes.items()}
TRAINED = [name for recipes in RECIPES.values() for name, recipe in recipes.items() if recipe.views]
PICTURES = ("images", "data", "folder", "image", "match")
"""Names of arguments that may be pictures."""


@pytest.mark.parametrize("name", TRAINED)
def test_help_of_train_has_a_dozen_flags_first_and_every_flag_once(name, capsys):
    (recipes,) = (recipes for recipes in RECIPES.values() if name in recipes)
    with pytest.raises(SystemExit):
        cli.main(recipes, ["train", "--help", *(["--method", name] if len(recipes) > 1 else [])])
    shown = capsys.readouterr().out
    assert ("--method" in shown) == (len(recipes) > 1)
    boxes = re.split(r"─ ([\w -]*options) ─", shown)
    found = [re.findall(r"^│ --([\w-]+)", box, re.MULTILINE) for box in boxes[2::2]]
    assert boxes[1] == "options" and 11 <= len(found[0]) <= 13
    fields = (field.name for cls in (Train, CONFIGS[name], RunOptions, Output) for field in dataclasses.fields(cls))
    assert sorted(flag for box in found for flag in box) == sorted(field.replace("_", "-") for field in fields)


def test_headings_name_fields_that_there_are():
    fields = {field.name for cls in (*CONFIGS.values(), Train, RunOptions) for field in dataclasses.fields(cls)}
    assert {name for names in (cli.FIRST, *cli.HEADINGS.values()) for name in names} - fields == set()


@pytest.mark.parametrize(("module", "verb"), [(module, verb) for module, verbs in OWN.items() for verb in verbs])
def test_a_packages_own_command_returns_its_result_and_has_a_limit_on_pixels(module, verb):
    own = OWN[module][verb]
    assert inspect.signature(load(own.run)).return_annotation == "dict[str, Any]", "for --json"
    flags = {field.name for field in dataclasses.fields(load(own.arguments))}
    reads_pictures = module != "ssl_lm" and flags & {*PICTURES}
    assert ("max_pixels" in flags) == bool(reads_pictures)
    assert not flags & {field.name for field in dataclasses.fields(Output)}


def test_the_engines_commands_that_read_pictures_have_a_limit_on_pixels():
    fields = {verb: {field.name for field in dataclasses.fields(cls)} for verb, cls in VERBS.items()}
    reading = {verb for verb, names in fields.items() if names & {"data", "pictures"}}
    limited = {verb for verb, names in fields.items() if "max_pixels" in names}
    own = {"train", "info", "export"}  # two have it among the settings, export looks at a few pictures by the run's own
    assert reading == limited | own


def test_the_engines_commands_return_their_results():
    from ssl_train.cli import commands

    for verb in VERBS:
        assert inspect.signature(getattr(commands, verb)).return_annotation == "dict[str, Any]", verb
