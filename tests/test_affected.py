"""Which suites a change runs: a table that agrees with the requirements in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

import pytest
from affected import CODE, RULES, affected, changed_since, every_environment
from packaging.requirements import Requirement
from projects import ROOT, methods, projects

METHODS = [project.word for project in methods().values()]
SHARED = ["core", "train", "testing"]

TABLE = [
    (["packages/ssl-dino/src/ssl_dino/dino.py"], ["dino", *CODE]),
    (["packages/ssl-dino/tests/test_dino.py", "packages/ssl-mae/README.md"], ["dino", "mae", *CODE]),
    (["shared-core/src/ssl_core/vit.py"], [*SHARED, *METHODS, *CODE]),
    (["packages/ssl-train/pyproject.toml"], [*SHARED, *METHODS, *CODE]),
    (["packages/ssl-testing/src/ssl_testing/conformance.py"], [*SHARED, *METHODS, *CODE]),
    (["docs/dino.md"], ["cross", "lint", "docs"]),
    (["README.md"], ["cross", "docs"]),
    (["tests/test_uniform.py"], ["cross", "lint", "types"]),
    (["tools/release.py"], ["cross", "lint", "types", "wheels"]),
    ([".github/workflows/test.yml"], ["cross", "lint"]),
    (["tox.ini"], every_environment()),
    (["constraints.txt"], every_environment()),
    (["a-file-that-no-rule-names"], every_environment()),
    ([], []),
]


@pytest.mark.parametrize(("paths", "wanted"), TABLE, ids=lambda value: " ".join(value)[:60])
def test_a_change_runs_the_suites_that_it_can_break(paths, wanted):
    assert set(affected(paths)) == set(wanted)


def test_every_environment_of_the_default_run_can_be_asked_for():
    asked = {word for _, wanted in TABLE for word in wanted}
    assert asked == set(every_environment())


@pytest.mark.parametrize("name", projects())
def test_what_a_package_requires_runs_its_suite(name):
    # the requirements are written by hand and the rule reads imports: two sources for one truth
    for line in projects()[name].ours:
        changed = projects()[Requirement(line).name].folder.relative_to(ROOT).as_posix()
        assert projects()[name].word in affected([f"{changed}/src/x.py"])


def test_rules_name_paths_and_environments_that_exist():
    for path, environments in RULES.items():
        assert (ROOT / path).exists(), path
        assert set(environments) <= set(every_environment()), path


def test_a_workflow_gets_suites_and_checks_apart(tmp_path):
    output = tmp_path / "output"
    command = [sys.executable, "tools/affected.py", "packages/ssl-mae/src/ssl_mae/mae.py"]
    subprocess.run(command, cwd=ROOT, check=True, env={"GITHUB_OUTPUT": str(output)}, capture_output=True)
    assert output.read_text().splitlines() == [
        'suites=["mae"]',
        'checks=["cross", "lint", "types", "imports", "wheels"]',
    ]


def test_a_branch_without_a_base_runs_everything():
    assert affected(changed_since("0" * 40)) == every_environment()
