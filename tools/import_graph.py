"""Which module of ours imports which, read from the syntax tree: nothing is imported to find out.

Imports inside functions and below `if TYPE_CHECKING:` count, import strings do not. A package whose
names are lazy is read from its stub, `__init__.pyi`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

from projects import projects

Graph = Mapping[str, set[str]]
"""Module -> the modules that it imports."""


def module_files(sources: Iterable[Path]) -> dict[str, Path]:
    """Dotted name -> file of every module below `sources`, such as `packages/ssl-mae/src`."""
    files: dict[str, Path] = {}
    for source in sources:
        for path in sorted(source.rglob("*.py")):
            name = ".".join(path.relative_to(source).with_suffix("").parts)
            stub = path.with_suffix(".pyi")
            files[name.removesuffix(".__init__")] = stub if stub.exists() else path
    return files


def import_graph(sources: Iterable[Path] | None = None) -> dict[str, set[str]]:
    """The imports among the modules below `sources`; of every distribution by default."""
    return graph_of(
        module_files([project.folder / "src" for project in projects().values()] if sources is None else sources)
    )


def graph_of(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """The imports among the modules in `files`: dotted name -> file."""
    return {module: set(_imported(module, files)) & files.keys() - {module} for module in files}


def _imported(module: str, files: Mapping[str, Path]) -> Iterator[str]:
    package = module if files[module].stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(files[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            base = resolve_name(name, package) if node.level else name
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in files else base


def chain(graph: Graph, start: str, package: str) -> list[str]:
    """A shortest chain of imports from `start` into `package`; [] if there is none."""
    seen, chains = {start}, [[start]]
    for way in chains:  # grows while we walk it, so shorter chains come first
        if way[-1].split(".")[0] == package:
            return way
        new = graph[way[-1]] - seen
        seen |= new
        chains += ([*way, name] for name in sorted(new))
    return []


def circle(graph: Graph) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; [] if none do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []
