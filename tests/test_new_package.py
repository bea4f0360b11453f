"""tools/new_package.py in a copy of the tree makes a package like the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("packages", "shared-core", "tests", "tools", "LICENSE", "pyproject.toml", "tox.ini")
BUILT = shutil.ignore_patterns("__pycache__", "runs", "dist", ".*_cache")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the copy, where the new package is importable but not installed."""
    new = [str(folder / "packages/ssl-rot/src"), str(folder / "installed")]
    path = os.pathsep.join([*new, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=550)


def succeeds(folder: Path, *command: str) -> None:
    done = run(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy of the tree after `new_package.py ssl-rot`."""
    folder = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copy if source.is_file() else shutil.copytree
        copy(source, folder / name, **({} if source.is_file() else {"ignore": BUILT}))
    succeeds(folder, sys.executable, "tools/new_package.py", "ssl-rot")
    metadata = folder / "installed" / "ssl_rot-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: ssl-rot\nVersion: 0.1.0\n")
    return folder


def test_new_package_is_uniform(made):
    assert (made / "packages/ssl-rot/src/ssl_rot/rotation.py").exists()
    succeeds(made, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_uniform.py")


def test_nothing_of_the_template_is_left(made):
    files = [path for path in (made / "packages/ssl-rot").rglob("*") if path.is_file()]
    assert [path for path in files if "template" in path.name or "template" in path.read_text()] == []


@pytest.mark.timeout(600)
def test_new_package_passes_its_own_tests(made):
    succeeds(made, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "packages/ssl-rot/tests")


def test_new_package_is_clean_once_formatted_for_its_name(made):
    succeeds(made, "ruff", "check", "--no-cache", "--fix", "--select", "I", "packages/ssl-rot")
    succeeds(made, "ruff", "format", "--no-cache", "packages/ssl-rot")
    succeeds(made, "ruff", "check", "--no-cache", "packages/ssl-rot")


def test_new_package_keeps_the_contracts(made):
    succeeds(made, "lint-imports", "--no-cache", "--no-logo")


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("packages/ssl-rot/src/ssl_rot/views.py", "import ssl_mae.mae", "never on each other BROKEN"),
        ("packages/ssl-rot/src/ssl_rot/config.py", "import torch", "free of torch BROKEN"),
        ("packages/ssl-rot/src/ssl_rot/rotation.py", "import ssl_train.fit", "need the core alone BROKEN"),
        ("packages/ssl-rot/src/ssl_rot/convert.py", "import transformers", "never imports it BROKEN"),
        ("packages/ssl-rot/src/ssl_rot/show.py", "import ssl_testing", "by tests alone BROKEN"),
    ],
)
def test_a_broken_contract_is_named(made, file, line, contract):
    path = made / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    done = run(made, "lint-imports", "--no-cache", "--no-logo")
    path.write_text(before)
    assert done.returncode == 1
    assert contract in done.stdout


@pytest.mark.parametrize(
    ("name", "message"), [("ssl-mae", "exists already"), ("ssl-lint", "taken"), ("rot", "no package name")]
)
def test_a_bad_name_is_refused(made, name, message):
    refused = run(made, sys.executable, "tools/new_package.py", name)
    assert refused.returncode == 1
    assert message in refused.stderr
