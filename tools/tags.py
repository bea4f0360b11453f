"""What was released, read from the tags of this repository: `ssl-mae-v1.2.0`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from projects import ROOT, projects


class ReleaseError(RuntimeError):
    """The release is refused; the message says why."""


def git(*arguments: str) -> str:
    """Output of a git command in this repository. Raises CalledProcessError when it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout


def folder_of(name: str) -> Path:
    """The folder of a distribution; ReleaseError when there is none."""
    known = projects(ROOT)
    if name not in known:
        raise ReleaseError(f"there is no distribution {name}, only {', '.join(known)}")
    return known[name].folder


def tagged(name: str) -> set[str]:
    """Versions of a distribution that have a tag."""
    return {tag.removeprefix(f"{name}-v") for tag in git("tag", "--list", f"{name}-v*").split()}
