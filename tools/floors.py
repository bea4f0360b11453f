"""Does a package work with the oldest versions that it admits?

    tox -e floors -- ssl-mae           its suite, from wheels, on the oldest that it admits
    tox -e floors -- ssl-mae --read    read the sources alone, and install nothing
    tox -e floors -- ssl-mae-v1.2.0    a tag is taken for its package

Our own distributions are taken at their oldest release that the package admits, from the tag
`ssl-core-v1.0.0` of this repository. Before the first such release the tree itself stands for it.

The sources are read first. Each name that the package imports from another of ours has to be there
in that oldest release. What is missing is named.
Then the wheels are built from these releases, and installed into an empty environment with the
oldest third parties (`uv --resolution lowest-direct`), where the package's suite runs.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from import_graph import module_files
from packaging.requirements import Requirement
from packaging.version import Version
from projects import ROOT, Project, projects
from tags import ReleaseError, folder_of, tagged
from wheels import build, run

TREE = "the tree"
"""Stands for a release where there is none yet."""
OLDEST = (
    "pytest>=9",
    "pytest-timeout>=2.4",
    # the peers that suites compare with
    "lightly>=1.5",
    "open_clip_torch>=3.1",
    "pytorch-metric-learning>=2.8",
    "timm>=1.0.29",
    # of `datasets`, matplotlib and scikit-learn: the newest do not go with NumPy 1
    "pyarrow>=17",
    "pyparsing>=3.1",
    "scikit-learn>=1.6",
    "scipy>=1.13",
)
"""What the suites need beside the packages, at the oldest versions that go together."""


def oldest(requirement: Requirement) -> str:
    """The oldest released version that a requirement admits, or TREE if nothing is released.

    Raises ReleaseError if there are releases and none is admitted, or if the tree itself is not.
    """
    released = sorted(tagged(requirement.name), key=Version)
    admitted = [version for version in released if requirement.specifier.contains(version)]
    if admitted:
        return admitted[0]
    version = Project(folder_of(requirement.name)).table["project"]["version"]
    if released or not requirement.specifier.contains(version):
        raise ReleaseError(f"{requirement} admits none of {', '.join(released) or f'{version}, the version here'}")
    return TREE


def floors(project: Project) -> dict[str, str]:
    """Name -> oldest version of our distributions that a project requires."""
    return {requirement.name: oldest(requirement) for requirement in map(Requirement, project.ours)}


def checkout(name: str, version: str, folder: Path) -> Path:
    """The folder of a distribution as released, unpacked below `folder`; its own for TREE."""
    source = folder_of(name)
    if version == TREE:
        return source
    where = folder / f"{name}-{version}"
    where.mkdir()
    tag, path = f"{name}-v{version}", source.relative_to(ROOT).as_posix()
    archive = subprocess.run(("git", "archive", tag, path), cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(("tar", "-x", "-C", where), input=archive, check=True)
    return where / path


def imports(project: Project) -> Iterator[tuple[str, str, str]]:
    """(file, module, name) of everything that a project's sources import from another of ours."""
    ours = {other.module.name for other in projects().values()} - {project.module.name}
    for path in sorted(project.module.rglob("*.py*")):
        if path.suffix not in (".py", ".pyi"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                for alias in node.names if node.module.partition(".")[0] in ours else ():
                    yield path.name, node.module, alias.name
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] in ours:
                        yield path.name, alias.name, ""


def defined(path: Path) -> set[str]:
    """Names that a module binds at its top: what can be imported from it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def missing(project: Project, sources: dict[str, Path]) -> list[str]:
    """`module.name (file)` of each import of `project` that is not in `sources`.

    `sources` are folders of other distributions, by module name. Methods and fields of what is
    imported are not followed: the suite finds those.
    """
    files = module_files(folder / "src" for folder in sources.values())
    wanted = sorted({(module, name): file for file, module, name in imports(project)}.items())
    absent = []
    for (module, name), file in wanted:
        if module.partition(".")[0] not in sources:
            continue
        there = module in files and (not name or f"{module}.{name}" in files or name in defined(files[module]))
        if not there:
            absent.append(f"{module}{name and '.'}{name} ({file})")
    return absent


def read(project: Project, folder: Path) -> dict[str, Path]:
    """Folders of our distributions at `project`'s floors.

    Raises ReleaseError, with names, if the project imports what is not there.
    """
    versions = floors(project)
    checkouts = {name: checkout(name, version, folder) for name, version in versions.items()}
    sources = {name.replace("-", "_"): path for name, path in checkouts.items()}
    if absent := missing(project, sources):
        there = ", ".join(f"{name} {version}" for name, version in versions.items())
        raise ReleaseError(f"{project.name} admits {there}, which lack {', '.join(absent)}: raise the floor")
    return checkouts


def third_parties(project: Project) -> list[str]:
    """What a project requires of others, extras included."""
    table = project.table["project"]
    lines = [
        *table["dependencies"],
        *(line for extra in table.get("optional-dependencies", {}).values() for line in extra),
    ]
    return [line for line in lines if not line.startswith("ssl-")]


def suite(project: Project, checkouts: dict[str, Path], folder: Path) -> None:
    """Run a project's tests on wheels of `checkouts` and on the oldest third parties."""
    sources = {**checkouts, project.name: project.folder}
    # tests use the suite and what it needs; it has no releases that a package admits or refuses
    for name in ("ssl-testing", "ssl-train", "ssl-core"):
        sources.setdefault(name, folder_of(name))
    wheels = [build(source, folder / f"{name}-dist") for name, source in sources.items()]
    venv = folder / "venv"
    run("uv", "venv", "--quiet", "--python", sys.executable, venv, cwd=folder)
    # uv lowers what it is asked for directly, so the wheels' own requirements are asked for too
    wanted = {line for source in sources.values() for line in third_parties(Project(source))}
    (python,) = [*venv.glob("bin/python"), *venv.glob("Scripts/python.exe")]
    install = ("uv", "pip", "install", "--quiet", "--resolution", "lowest-direct", "--python", python)
    run(*install, *wheels, *sorted(wanted), *OLDEST, cwd=folder)
    run(python, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", project.folder / "tests", cwd=folder)


def main() -> None:
    """Check the floors of one package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="distribution, such as ssl-mae, or a tag of it")
    parser.add_argument("--read", action="store_true", help="read the sources alone")
    arguments = parser.parse_args()
    try:
        project = Project(folder_of(re.sub(r"-v[\d.]+$", "", arguments.name)))
        with tempfile.TemporaryDirectory(prefix="floors-") as temporary:
            checkouts = read(project, Path(temporary))
            print(f"{project.name}: its imports are there in {floors(project)}")
            if not arguments.read:
                suite(project, checkouts, Path(temporary))
    except ReleaseError as error:
        sys.exit(f"floors: {error}")


if __name__ == "__main__":
    main()
