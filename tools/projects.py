"""The distributions of this repository, and which of four kinds each one is. Tests and tools ask here and nowhere else."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
Kind = Literal["core", "engine", "suite", "method"]
SHARED: dict[str, Kind] = {"ssl-core": "core", "ssl-train": "engine", "ssl-testing": "suite"}
"""What is no method package, in the order in which one stands on the other."""


@dataclass(frozen=True)
class Project:
    """One distribution: `folder` holds its pyproject.toml."""

    folder: Path

    @property
    def table(self) -> dict[str, Any]:
        """Its pyproject.toml."""
        return tomllib.loads((self.folder / "pyproject.toml").read_text())

    @property
    def name(self) -> str:
        """Its name on PyPI, such as ssl-mae."""
        return self.table["project"]["name"]

    @property
    def module(self) -> Path:
        """Folder of the package that it installs."""
        return self.folder / "src" / self.name.replace("-", "_")

    @property
    def kind(self) -> Kind:
        """core, engine, suite, or method."""
        return SHARED.get(self.name, "method")

    @property
    def word(self) -> str:
        """Its tox environment."""
        return self.name.removeprefix("ssl-")

    @property
    def ours(self) -> list[str]:
        """The requirements on other distributions of this repository, as they are written."""
        return [line for line in self.table["project"]["dependencies"] if line.startswith("ssl-")]


def projects(root: Path = ROOT) -> dict[str, Project]:
    """Name -> project of all distributions: the core, the engine, the suite, then the method packages by name."""
    found = [
        Project(path.parent) for path in (root / "shared-core/pyproject.toml", *root.glob("packages/*/pyproject.toml"))
    ]
    order = [*SHARED]
    found.sort(key=lambda project: (order.index(project.name) if project.name in order else len(order), project.name))
    return {project.name: project for project in found}


def methods(root: Path = ROOT) -> dict[str, Project]:
    """Name -> project of the method packages alone."""
    return {name: project for name, project in projects(root).items() if project.kind == "method"}
