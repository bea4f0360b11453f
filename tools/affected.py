"""Which tox environments a change has to pass, from the paths that it touches.

    tox -e affected -- --base origin/main      what differs from a commit
    tox -e affected -- packages/ssl-dino/src/ssl_dino/dino.py docs/dino.md

It prints a JSON list. With GITHUB_OUTPUT set it also writes `suites`, the environments that are a
package's suite, and `checks`, the others, to that file, one line each.

A suite runs if its package, or anything of ours that the package or its tests import, has changed.
A path that no rule names runs everything, so a forgotten rule costs time and never a test.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath

from import_graph import graph_of, module_files
from projects import ROOT, Project, projects

CODE = ("cross", "lint", "types", "imports", "wheels")
"""Checks of every change in a package: they read all packages."""
RULES: dict[str, tuple[str, ...]] = {
    "docs/": ("cross", "lint", "docs"),
    "README.md": ("cross", "docs"),
    "CONTRIBUTING.md": ("cross",),
    "CITATION.cff": ("cross",),
    "zensical.toml": ("cross", "docs"),
    "tests/": ("cross", "lint", "types"),
    "tools/": ("cross", "lint", "types", "wheels"),
    ".github/": ("cross", "lint"),
    ".gitignore": ("cross",),
    ".pre-commit-config.yaml": ("lint",),
}
"""Start of a path outside the packages -> environments. The longest that fits counts."""


def every_environment() -> list[str]:
    """The environments of tox.ini's default run, in its order."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / "tox.ini")
    return [word.strip() for word in ini["tox"]["env_list"].split(",")]


def reach(project: Project, graph: dict[str, set[str]]) -> set[str]:
    """Names of the distributions whose change can break `project`'s suite, itself included.

    These hold the modules that its sources and its tests import, directly and indirectly.
    """
    start = {name for name in graph if name.partition(".")[0] == project.module.name}
    start |= {name for name in graph if name.startswith(f"tests.{project.word}.")}
    seen, todo = set(start), [*start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    modules = {name.partition(".")[0] for name in seen}
    return {name for name, other in projects().items() if other.module.name in modules}


@cache
def reaches() -> dict[str, set[str]]:
    """Suite -> names of the distributions whose change can break it."""
    graph = _with_tests()
    return {project.word: reach(project, graph) for project in projects().values()}


def _with_tests() -> dict[str, set[str]]:
    """The imports of every distribution, and of its tests as modules `tests.<word>.<file>`."""
    files = module_files(project.folder / "src" for project in projects().values())
    for project in projects().values():
        tests = sorted((project.folder / "tests").rglob("*.py"))
        files |= {f"tests.{project.word}.{path.stem}": path for path in tests}
    return graph_of(files)


def affected(paths: Iterable[str]) -> list[str]:
    """Environments that a change of these paths has to pass, in the order of tox.ini.

    `paths` are relative to the root, with slashes.
    """
    known = every_environment()
    wanted: set[str] = set()
    for path in paths:
        changed = _distribution(path)
        if changed:
            wanted |= {*CODE, *(word for word, names in reaches().items() if changed in names)}
        elif rules := [start for start in RULES if path == start or (start[-1] == "/" and path.startswith(start))]:
            wanted |= set(RULES[max(rules, key=len)])
        else:
            return known
    return [word for word in known if word in wanted]


def _distribution(path: str) -> str | None:
    """Name of the distribution that a path lies in, if any."""
    for name, project in projects().items():
        if PurePosixPath(path).is_relative_to(project.folder.relative_to(ROOT).as_posix()):
            return name
    return None


def changed_since(base: str) -> list[str]:
    """Paths that differ between the commit where we left `base` and now, deleted ones included.

    A new branch has no base, which GitHub writes as zeros: then the whole tree is new.
    """
    if not base.strip("0"):
        return [""]
    command = ("git", "diff", "--name-only", "--no-renames", f"{base}...HEAD")
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout.splitlines()


def main() -> None:
    """Print the environments, and hand them to a workflow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="changed paths, relative to the root")
    parser.add_argument("--base", help="take what differs from this commit")
    arguments = parser.parse_args()
    paths = [*arguments.paths, *(changed_since(arguments.base) if arguments.base else ())]
    environments = affected(paths)
    suites = {project.word for project in projects().values()}
    print(json.dumps(environments))
    if output := os.environ.get("GITHUB_OUTPUT"):
        with Path(output).open("a", encoding="utf-8") as file:
            file.write(f"suites={json.dumps([word for word in environments if word in suites])}\n")
            file.write(f"checks={json.dumps([word for word in environments if word not in suites])}\n")


if __name__ == "__main__":
    main()
