"""Build what a tag releases: the sdist and the wheel of one distribution, and its release notes.

    tox -e build -- ssl-mae-v1.2.0 --out dist

`dist/packages` then holds the two files, which `twine check --strict` accepts, and `dist/notes.md`
the section of the changelog. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from projects import ROOT, Project
from tags import ReleaseError, folder_of

TAG = re.compile(r"(?P<name>ssl-[a-z-]+)-v(?P<version>\d+\.\d+\.\d+)")


def tag_of(text: str) -> tuple[Project, str]:
    """Distribution and version that a tag names; ReleaseError unless the tree is that version."""
    found = TAG.fullmatch(text)
    if not found:
        raise ReleaseError(f"{text} is no tag of a release, such as ssl-mae-v1.2.0")
    project, version = Project(folder_of(found["name"])), found["version"]
    if (stands := project.table["project"]["version"]) != version:
        raise ReleaseError(f"{text} lies on a tree in which {project.name} has version {stands}")
    return project, version


def notes(changelog: str, version: str) -> str:
    """The section of a changelog on one version; ReleaseError if there is none."""
    found = re.search(rf"^## {re.escape(version)} .*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if not found:
        raise ReleaseError(f"the changelog has no section on {version}")
    return found[1].strip() + "\n"


def build(project: Project, folder: Path) -> None:
    """Write sdist and wheel of a project into `folder`, and check them as PyPI would."""
    # the build backend of this environment: a release takes nothing that was not pinned
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project.folder)
    subprocess.run(command, check=True)
    subprocess.run((sys.executable, "-m", "twine", "check", "--strict", *sorted(folder.iterdir())), check=True)


def main() -> None:
    """Command line of the build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", help="such as ssl-mae-v1.2.0")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    packages = arguments.out.resolve() / "packages"
    if packages.exists() and any(packages.iterdir()):
        parser.error(f"{packages} is not empty")
    try:
        project, version = tag_of(arguments.tag)
        text = notes((project.folder / "CHANGELOG.md").read_text("utf-8"), version)
        packages.mkdir(parents=True, exist_ok=True)
        build(project, packages)
        (arguments.out / "notes.md").write_text(text, "utf-8")
    except ReleaseError as error:
        sys.exit(f"not built: {error}")


if __name__ == "__main__":
    main()
