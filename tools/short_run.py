"""Import every module of every package and train each package for three steps, on any system.

    tox -e short

The runs read the built-in pictures or text, with two loader processes where a package has them. The
weights that a run wrote are opened again. What macOS and Windows do differently shows here.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

from projects import methods, projects

STEPS = ("--max-steps", "3", "--workers", "2")


def import_all(module: str) -> int:
    """Import a package and all of its modules but `__main__`; returns how many there are."""
    package = importlib.import_module(module)
    names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{module}.")]
    for name in names:
        if not name.endswith(".__main__"):
            importlib.import_module(name)
    return len(names)


def main() -> None:
    """Exit with an error where something fails."""
    for project in projects().values():
        if project.name == "ssl-testing" and sys.platform == "win32":
            continue  # it forks
        print(f"{project.name}: {import_all(project.module.name)} modules", flush=True)
    with tempfile.TemporaryDirectory(prefix="short-") as temporary:
        for name, project in methods().items():
            out = Path(temporary) / name
            command = (sys.executable, "-m", project.module.name)
            subprocess.run((*command, "train", *STEPS, "--out", out), check=True, stdin=subprocess.DEVNULL)
            subprocess.run((*command, "info", out), check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
