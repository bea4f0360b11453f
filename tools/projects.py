"""The distributions of this repository, and which of four kinds each one is.

Tests and tools ask here and nowhere else.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
Kind = Literal["core", "engine", "suite", "method"]
SHARED: dict[str, Kind] = {"ssl-core": "core", "ssl-train": "engine", "ssl-testing": "suite"}
"""The distributions that are not method packages, each after the one it depends on."""


@dataclass(frozen=True)
class Project:
    """One distribution: `folder` holds its pyproject.toml."""

    folder: Path

    @property
    def table(self) -> dict[str, Any]:
        """Its pyproject.toml."""
        return tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))

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
        """Its requirements on our other distributions, as written in pyproject.toml."""
        return [line for line in self.table["project"]["dependencies"] if line.startswith("ssl-")]


def projects(root: Path = ROOT) -> dict[str, Project]:
    """Name -> project of every distribution: core, engine, suite, then method packages by name."""
    found = [
        Project(path.parent) for path in (root / "shared-core/pyproject.toml", *root.glob("packages/*/pyproject.toml"))
    ]
    order = [*SHARED]
    found.sort(key=lambda project: (order.index(project.name) if project.name in order else len(order), project.name))
    return {project.name: project for project in found}


def methods(root: Path = ROOT) -> dict[str, Project]:
    """Name -> project of the method packages."""
    return {name: project for name, project in projects(root).items() if project.kind == "method"}


def paper_modules(project: Project) -> list[str]:
    """Modules of the methods that a package's recipes name: one for each paper."""
    recipes = import_module(f"{project.module.name}.config").RECIPES
    return sorted({recipe.method.partition(":")[0] for recipe in recipes.values()})


def model_modules(project: Project) -> list[str]:
    """What loading weights and encoding may need, so it imports the core alone.

    These are config, convert*, heads and loss, as far as the package has them, and its papers'
    modules.
    """
    patterns = ("config.py", "convert*.py", "heads.py", "loss.py")
    named = {path.stem for pattern in patterns for path in project.module.glob(pattern)}
    return sorted({f"{project.module.name}.{stem}" for stem in named}.union(paper_modules(project)))
