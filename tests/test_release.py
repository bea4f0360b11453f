"""tools/release.py in a small repository, with a stand-in for tox."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOX = """#!/bin/sh
echo "$@" >> tox.log
exit $(cat tox.exit)
"""


class Repository:
    """A git repository with copies of the files that a release reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {**os.environ, "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        self.env["GIT_CONFIG_GLOBAL"] = os.devnull
        for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
            self.env |= {f"{name}_NAME": "A", f"{name}_EMAIL": "a@example.com"}
        tools = ("floors", "import_graph", "package", "projects", "release", "tags", "wheels")
        for name in ("pyproject.toml", *(f"tools/{tool}.py" for tool in tools)):
            self.write(name, (ROOT / name).read_text())
        for project in ("shared-core", "packages/ssl-train", "packages/ssl-mae"):
            pyproject = (ROOT / project / "pyproject.toml").read_text()
            self.write(f"{project}/pyproject.toml", pyproject)
            self.write(f"{project}/CHANGELOG.md", "# Changelog\n\n<!-- towncrier release notes start -->\n")
            self.write(f"{project}/changelog.d/7.fixed.md", "A bug is gone.\n")
            self.write(f"{project}/README.md", "# A package\n")
            self.write(f"{project}/LICENSE", (ROOT / "LICENSE").read_text())
        self.write("shared-core/src/ssl_core/__init__.py", "")
        self.write("shared-core/src/ssl_core/vit.py", "def vit():\n    return 1\n")
        self.write("packages/ssl-train/src/ssl_train/__init__.py", "from ssl_core.vit import vit\n")
        self.write("packages/ssl-mae/src/ssl_mae/__init__.py", "from ssl_core.vit import vit\nimport ssl_train\n")
        self.write("bin/tox", TOX)
        (root / "bin/tox").chmod(0o755)
        self.write("tox.exit", "0")
        self.write(".gitignore", (ROOT / ".gitignore").read_text() + "tox.log\n")
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "start")
        self.git("remote", "add", "origin", "git@example.com:someone/ssl.git")

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def git(self, *arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=self.env, check=True, text=True, stdout=subprocess.PIPE
        ).stdout

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.tool("release", *arguments)

    def tool(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"tools/{name}.py", *arguments]
        return subprocess.run(command, cwd=self.root, env=self.env, text=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    assert shutil.which("git")
    return Repository(tmp_path)


def test_release_bumps_writes_the_changelog_tests_commits_and_tags(repository):
    done = repository.release("ssl-core", "1.0.1")
    assert done.returncode == 0, done.stderr
    assert 'version = "1.0.1"' in repository.read("shared-core/pyproject.toml")
    changelog = repository.read("shared-core/CHANGELOG.md")
    assert "## 1.0.1 (" in changelog
    assert "### Fixed\n\n- A bug is gone. (#7)" in changelog
    assert not (repository.root / "shared-core/changelog.d/7.fixed.md").exists()
    assert repository.read("tox.log") == "-r\n"
    assert repository.git("tag").split() == ["ssl-core-v1.0.1"]
    assert repository.git("log", "-1", "--format=%s") == "Release ssl-core 1.0.1\n"
    assert repository.git("status", "--porcelain") == ""
    assert (repository.root / "packages/ssl-mae/changelog.d/7.fixed.md").exists()


def test_package_waits_for_its_core_and_its_engine(repository):
    for missing in ("ssl-core", "ssl-train"):
        refused = repository.release("ssl-mae", "0.1.0")
        assert refused.returncode != 0
        assert f"release {missing} first" in refused.stderr
        repository.git("tag", f"{missing}-v1.0.0")
    done = repository.release("ssl-mae", "0.1.0")
    assert done.returncode == 0, done.stderr
    assert "ssl-mae-v0.1.0" in repository.git("tag").split()


def test_dry_run_shows_the_changelog_and_writes_nothing(repository):
    done = repository.release("ssl-core", "1.1.0", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "A bug is gone." in done.stdout
    assert repository.git("status", "--porcelain") == ""
    assert repository.git("tag") == ""
    assert not (repository.root / "tox.log").exists()


def test_failing_tests_leave_no_commit_and_no_tag(repository):
    repository.write("tox.exit", "3")
    repository.git("commit", "--quiet", "--all", "--message", "break")
    assert repository.release("ssl-core", "1.0.1").returncode != 0
    assert repository.git("tag") == ""
    assert repository.git("log", "-1", "--format=%s") == "break\n"


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        ("1.0", None, "three numbers"),
        ("0.9.0", None, "would go back"),
        ("1.0.1", "shared-core/new.py", "not clean"),
        ("1.0.0", "tag", "tagged already"),
    ],
)
def test_release_is_refused(repository, version, change, message):
    if change == "tag":
        repository.git("tag", "ssl-core-v1.0.0")
    elif change:
        repository.write(change, "")
    refused = repository.release("ssl-core", version)
    assert refused.returncode != 0
    assert message in refused.stderr


def test_release_without_news_or_of_nothing_is_refused(repository):
    repository.git("rm", "--quiet", "shared-core/changelog.d/7.fixed.md")
    repository.git("commit", "--quiet", "--message", "no news")
    (repository.root / "shared-core/changelog.d").mkdir(exist_ok=True)
    assert "nothing to release" in repository.release("ssl-core", "1.0.1").stderr
    assert "no distribution ssl-nothing" in repository.release("ssl-nothing", "1.0.1").stderr


def test_first_release_says_where_the_sources_are(repository):
    assert repository.release("ssl-core", "1.0.1").returncode == 0
    urls = tomllib.loads(repository.read("shared-core/pyproject.toml"))["project"]["urls"]
    assert urls["Source"] == "https://example.com/someone/ssl/tree/main/shared-core"
    assert set(urls) == {"Source", "Changelog", "Issues"}
    before = repository.read("shared-core/pyproject.toml")
    repository.write("shared-core/changelog.d/8.fixed.md", "Another bug is gone.\n")
    repository.commit("news")
    assert repository.release("ssl-core", "1.0.2").returncode == 0
    assert repository.read("shared-core/pyproject.toml") == before.replace("1.0.1", "1.0.2")


def test_a_floor_that_is_too_low_is_refused_with_the_name_that_is_missing(repository):
    repository.git("tag", "ssl-core-v1.0.0")
    repository.git("tag", "ssl-train-v1.0.0")
    assert repository.tool("floors", "ssl-mae", "--read").returncode == 0
    # the core learns something, a package uses it, and its floor stays where it was
    repository.write("shared-core/src/ssl_core/vit.py", "def vit():\n    return 1\n\ndef new():\n    return 2\n")
    repository.write("packages/ssl-mae/src/ssl_mae/mae.py", "from ssl_core.vit import new, vit\n")
    repository.commit("a new function")
    for refused in (
        repository.release("ssl-mae", "0.1.0", "--dry-run"),
        repository.tool("floors", "ssl-mae", "--read"),
    ):
        assert refused.returncode != 0
        assert "ssl-core 1.0.0" in refused.stderr
        assert "ssl_core.vit.new (mae.py)" in refused.stderr and "ssl_core.vit.vit" not in refused.stderr
        assert "raise the floor" in refused.stderr
    # released with it, and the floor raised: the package may go
    version = repository.read("shared-core/pyproject.toml").replace('"1.0.0"', '"1.1.0"')
    repository.write("shared-core/pyproject.toml", version)
    floor = repository.read("packages/ssl-mae/pyproject.toml").replace("ssl-core>=1.0,", "ssl-core>=1.1,")
    repository.write("packages/ssl-mae/pyproject.toml", floor)
    repository.commit("the floor")
    refused = repository.tool("floors", "ssl-mae", "--read")
    assert "ssl-core<2,>=1.1 admits none of 1.0.0" in refused.stderr
    repository.git("tag", "ssl-core-v1.1.0")
    assert repository.tool("floors", "ssl-mae", "--read").returncode == 0


@pytest.mark.parametrize(
    ("source", "lacks"),
    [
        ("import ssl_core.gone", "ssl_core.gone (mae.py)"),
        ("from ssl_core.gone import x", "ssl_core.gone.x (mae.py)"),
        ("def f():\n    from ssl_core import gone", "ssl_core.gone (mae.py)"),
        ("from ssl_train.fit import fit", "ssl_train.fit.fit (mae.py)"),
    ],
)
def test_every_form_of_import_is_read(repository, source, lacks):
    repository.write("packages/ssl-mae/src/ssl_mae/mae.py", source)
    assert lacks in repository.tool("floors", "ssl-mae", "--read").stderr


def test_a_tag_becomes_packages_and_notes(repository):
    assert repository.release("ssl-core", "1.0.1").returncode == 0
    done = repository.tool("package", "ssl-core-v1.0.1", "--out", "out")
    assert done.returncode == 0, done.stderr
    built = sorted(path.name for path in (repository.root / "out/packages").iterdir())
    assert built == ["ssl_core-1.0.1-py3-none-any.whl", "ssl_core-1.0.1.tar.gz"]
    assert repository.read("out/notes.md") == "### Fixed\n\n- A bug is gone. (#7)\n"
    for tag, message in (
        ("ssl-core-v1.0.0", "has version 1.0.1"),
        ("1.0.1", "no tag"),
        ("ssl-mae-v0.1.0", "no section"),
    ):
        refused = repository.tool("package", tag, "--out", "elsewhere")
        assert refused.returncode != 0 and message in refused.stderr
    assert not (repository.root / "elsewhere").exists()
