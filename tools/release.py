"""Release one distribution: its version, its changelog, its tag. Nothing leaves this machine.

    tox -e release -- ssl-mae 1.2.0 --dry-run      check, and show what would be written
    tox -e release -- ssl-mae 1.2.0                bump, changelog, tox, commit, tag ssl-mae-v1.2.0

A package can only be released after its core and engine, or users could not install it. What it
imports from them has to be there in the oldest releases that it admits (tools/floors.py). Its first
release also writes where its sources are, from the remote `origin`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import floors
from packaging.requirements import Requirement
from packaging.version import Version
from projects import ROOT, Project, projects
from tags import ReleaseError, folder_of, git, tagged

VERSION_LINE = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)


def check(name: str, version: str) -> None:
    """Raises ReleaseError unless this version may be released from the tree as it is."""
    folder = folder_of(name)
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"{version} is no release version: give three numbers, such as 1.2.0")
    if version in tagged(name):
        raise ReleaseError(f"{name} {version} is tagged already")
    if Version(version) < Version(project["version"]):
        raise ReleaseError(f"{name} is at {project['version']}, {version} would go back")
    if changed := git("status", "--porcelain"):
        raise ReleaseError(f"the tree is not clean, commit or stash first:\n{changed}")
    if not [p for p in (folder / "changelog.d").iterdir() if p.suffix == ".md"]:
        raise ReleaseError(f"{folder.name}/changelog.d is empty: there is nothing to release")
    for requirement in map(Requirement, projects(ROOT)[name].ours):
        if not any(requirement.specifier.contains(v) for v in tagged(requirement.name)):
            raise ReleaseError(f"no released version satisfies {requirement}: release {requirement.name} first")
    with tempfile.TemporaryDirectory(prefix="floors-") as temporary:
        floors.read(Project(folder), Path(temporary))


def write_version(folder: Path, version: str) -> None:
    """Put `version` into the one version line of a folder's pyproject.toml."""
    path = folder / "pyproject.toml"
    text, count = VERSION_LINE.subn(f'version = "{version}"', path.read_text("utf-8"))
    if count != 1:
        raise ReleaseError(f"{path} has {count} lines `version = …`, expected one")
    path.write_text(text, "utf-8")


def write_urls(folder: Path) -> None:
    """Give a project that has no `[project.urls]` those of the remote `origin`.

    Raises ReleaseError if the remote has no web page.
    """
    path = folder / "pyproject.toml"
    if "[project.urls]" in (text := path.read_text("utf-8")):
        return
    found = re.fullmatch(r"(?:git@|https://)([\w.-]+)[:/](.+?)(?:\.git)?/?", git("remote", "get-url", "origin").strip())
    if not found:
        raise ReleaseError("the remote `origin` is no https:// or git@ address: its web page goes into [project.urls]")
    web = f"https://{found[1]}/{found[2]}"
    place = folder.relative_to(ROOT).as_posix()
    table = {
        "Source": f"{web}/tree/main/{place}",
        "Changelog": f"{web}/blob/main/{place}/CHANGELOG.md",
        "Issues": f"{web}/issues",
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in table.items())
    path.write_text(text.replace("\n[tool.", f"\n[project.urls]\n{lines}\n[tool.", 1), "utf-8")


def towncrier(name: str, version: str, *flags: str) -> None:
    """Move the fragments of a distribution into its changelog."""
    where = ("--config", str(ROOT / "pyproject.toml"), "--dir", str(folder_of(name)))
    command = ("towncrier", "build", *where, "--name", name, "--version", version, *flags)
    subprocess.run(command, cwd=ROOT, check=True)


def release(name: str, version: str) -> None:
    """Bump, write the changelog, run all tests in new environments, commit and tag."""
    write_version(folder_of(name), version)
    write_urls(folder_of(name))
    towncrier(name, version, "--yes")
    print("testing; if this fails, `git reset --hard` undoes the release", flush=True)
    subprocess.run(["tox", "-r"], cwd=ROOT, check=True)
    git("commit", "--all", "--message", f"Release {name} {version}")
    git("tag", f"{name}-v{version}")
    print(f"done; publish it with: git push origin HEAD {name}-v{version}")


def main() -> None:
    """Command line of the release."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("name", help="distribution: ssl-core, ssl-mae, …")
    parser.add_argument("version", help="three numbers: 1.2.0")
    parser.add_argument("--dry-run", action="store_true", help="check and show, write nothing")
    arguments = parser.parse_args()
    try:
        check(arguments.name, arguments.version)
        if arguments.dry_run:
            towncrier(arguments.name, arguments.version, "--draft")
            print(f"then tox -r, a commit, and the tag {arguments.name}-v{arguments.version}")
        else:
            release(arguments.name, arguments.version)
    except ReleaseError as error:
        sys.exit(f"no release: {error}")


if __name__ == "__main__":
    main()
