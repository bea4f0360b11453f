"""Loading a method's weights and encoding with them need ssl-core and the method's own files
alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from import_graph import chain, import_graph
from projects import methods, model_modules

from ssl_core.method import load

ROOT = Path(__file__).resolve().parents[1]
GRAPH = import_graph()
MODELS = [module for project in methods(ROOT).values() for module in model_modules(project)]


@pytest.mark.parametrize("module", MODELS)
def test_a_method_and_its_weights_need_the_core_alone(module):
    others = {name.split(".")[0] for name in GRAPH} - {"ssl_core", module.split(".")[0]}
    assert [found for other in sorted(others) if (found := chain(GRAPH, module, other))] == []


@pytest.mark.parametrize("module", MODELS)
def test_the_import_contract_knows_what_needs_the_core_alone(module):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    patterns = next(c["source_modules"] for c in contracts if c.get("forbidden_modules") == ["ssl_train"])
    assert {module, f"*.{module.split('.')[1]}"} & set(patterns)


ENCODE = """
import json, sys
import torch
from ssl_core.method import load
engine = {}
for method, folder in json.load(sys.stdin).items():
    before = set(sys.modules)
    load(method).from_pretrained(folder).encode(torch.load(folder + "/inputs.pt", weights_only=True))
    engine[method] = sorted(name for name in sys.modules.keys() - before if name.startswith("ssl_train"))
print(json.dumps(engine))
"""


def test_loading_and_encoding_leave_the_engine_alone(tmp_path):
    recipes = [r for project in methods(ROOT).values() for r in load(f"{project.module.name}.config:RECIPES").values()]
    folders = {}
    for recipe in recipes:
        config = recipe.presets["demo"]()
        if hasattr(config, "image_size"):
            inputs = torch.zeros(2, config.in_channels, *config.size, dtype=torch.uint8)
        else:
            config, inputs = dataclasses.replace(config, vocab_size=512), torch.ones(2, 8, dtype=torch.long)
        folder = load(recipe.method)(config).save_pretrained(tmp_path / recipe.name)
        torch.save(inputs, folder / "inputs.pt")
        folders[recipe.method] = str(folder)
    command = [sys.executable, "-c", ENCODE]
    done = subprocess.run(command, input=json.dumps(folders), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {method: [] for method in folders}
