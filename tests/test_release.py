"""tools/release.py in a small repository, with a stand-in for tox."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
        for name in ("pyproject.toml", "tools/release.py", "tools/projects.py"):
            self.write(name, (ROOT / name).read_text())
        for project in ("shared-core", "packages/ssl-train", "packages/ssl-mae"):
            pyproject = (ROOT / project / "pyproject.toml").read_text()
            self.write(f"{project}/pyproject.toml", pyproject)
            self.write(f"{project}/CHANGELOG.md", "# Changelog\n\n<!-- towncrier release notes start -->\n")
            self.write(f"{project}/changelog.d/7.fixed.md", "A bug is gone.\n")
        self.write("bin/tox", TOX)
        (root / "bin/tox").chmod(0o755)
        self.write("tox.exit", "0")
        self.write(".gitignore", (ROOT / ".gitignore").read_text() + "tox.log\n")
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "start")

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

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/release.py", *arguments]
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
