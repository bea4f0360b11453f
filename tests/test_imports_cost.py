"""CPU seconds of a new process that imports a package or prints its help."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from projects import methods

ROOT = Path(__file__).resolve().parents[1]
MODULES = [project.module.name for project in methods(ROOT).values()]
HEAVY = {"datasets", "huggingface_hub", "matplotlib", "scipy", "sklearn", "torchvision", "transformers"}
OWN = [
    pytest.param(module, verb, id=f"{module}-{verb}")
    for module in MODULES
    if (ROOT / "packages" / module.replace("_", "-") / "src" / module / "verbs.py").is_file()
    for verb in import_module(f"{module}.verbs").VERBS
]
TRIES = 5  # noise only adds CPU time, so the cheapest try is the cost

IMPORT = """
import json, sys, time
import torch
start = time.process_time()
package = __import__(sys.argv[1])
names = [getattr(package, name) for name in package.__all__]
print(json.dumps([time.process_time() - start, len(names), sorted(sys.modules)]))
"""

HELP = """
import contextlib, io, json, sys, time
from importlib import import_module
page = io.StringIO()
main = import_module(sys.argv[1] + ".__main__").main
sys.argv[1:] = sys.argv[2:]
with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
    main()
print(json.dumps([time.process_time(), page.getvalue(), sorted(sys.modules)]))
"""


def in_new_process(code: str, *arguments: str) -> list:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
    return json.loads(done.stdout)


def cheapest(limit: float, code: str, *arguments: str) -> list:
    """The first try within `limit` CPU seconds, or else the cheapest of all tries."""
    tries = []
    for _ in range(TRIES):
        tries.append(in_new_process(code, *arguments))
        if tries[-1][0] < limit:
            break
    return min(tries, key=lambda result: result[0])


@pytest.mark.parametrize("module", MODULES)
def test_import_adds_little_to_torch_and_loads_nothing_heavy(module):
    seconds, names, loaded = cheapest(0.1, IMPORT, module)
    assert names > 2
    assert HEAVY.intersection(loaded) == set()
    assert seconds < 0.1


@pytest.mark.parametrize("verb", [[], ["train"], ["evaluate"]], ids=lambda verb: " ".join(verb) or "-")
@pytest.mark.parametrize("module", MODULES)
def test_help_is_instant_and_imports_no_torch(module, verb):
    seconds, page, loaded = cheapest(0.5, HELP, module, *verb, "--help")
    assert ("--out" if verb else "train") in page
    assert "torch" not in loaded
    assert seconds <= 0.5


@pytest.mark.parametrize(("module", "verb"), OWN)
def test_help_of_a_packages_own_command_is_instant_and_imports_no_torch(module, verb):
    seconds, page, loaded = cheapest(0.5, HELP, module, verb, "--help")
    assert f"usage: {module.replace('_', '-')} {verb}" in page
    assert "torch" not in loaded
    assert seconds <= 0.5
