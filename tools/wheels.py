"""Build every wheel, install each one alone in an empty environment, and start it.

    tox -e wheels                  all of them
    tox -e wheels -- ssl-mae       one of them

A wheel is built from its sdist, so files missing there are missing here. Requirements on our own
packages are given as paths of the wheels just built, so no index can replace them. Prints how much
a package adds to torch and torchvision.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from projects import projects

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
MOST = (22, 30.0)
"""Packages, ours included, and MB that a package may add to torch and torchvision."""
MOST_OF = {"ssl-clip": (23, 40.0), "ssl-lm": (23, 40.0)}  # tokenizers
SHORT = ("--epochs", "0.05", "--warmup-epochs", "0")  # a few steps on the built-in data
METHOD = {"ssl-beit": ("--method", "dvae")}  # BEiT itself would train a whole tokenizer first

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
assert package.__file__.startswith(sys.prefix), f"{package.__file__} is not the wheel's"
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    if module.name.split(".")[1] != "__main__":
        importlib.import_module(module.name)
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command without the variables that would lead Python back to this tree.

    Raises subprocess.CalledProcessError when it fails.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    print("$", *command, flush=True)
    subprocess.run(command, cwd=cwd, env=env, check=True, stdin=subprocess.DEVNULL)


def build(project: Path, folder: Path) -> Path:
    """Build the wheel of a project's folder from its sdist, in a new `folder`; returns its path."""
    folder.mkdir()
    run("uv", "build", "--quiet", "-b", CONSTRAINTS, "-o", folder, project, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path, module: str) -> None:
    """ValueError unless the wheel holds the package, its type marker, its licence and no more."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if strange := [n for n in names if not n.startswith(f"{module}/") and ".dist-info/" not in n]:
        raise ValueError(f"{wheel.name} holds files outside {module}/: {strange[:5]}")
    for wanted in (f"{module}/__init__.py", f"{module}/py.typed", ".dist-info/licenses/LICENSE"):
        if not any(name.endswith(wanted) for name in names):
            raise ValueError(f"{wheel.name} lacks {wanted}")


def needed(name: str, wheels: dict[str, Path]) -> list[Path]:
    """The wheel of `name` and our wheels that it requires."""
    requirements = [Requirement(line).name for line in projects()[name].ours]
    return [wheels[name], *(w for other in requirements for w in needed(other, wheels))]


def torch_alone(folder: Path) -> set[str]:
    """Names of torch, torchvision and everything they need."""
    wanted = folder / "torch.in"
    wanted.write_text("torch\ntorchvision\n", "utf-8")
    command = ("uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "-c", CONSTRAINTS)
    listed = subprocess.run((*command, wanted), cwd=folder, check=True, text=True, stdout=subprocess.PIPE)
    return {Requirement(line).name for line in listed.stdout.splitlines()}


def megabytes(distribution: Distribution) -> float:
    """Size of the files that a distribution installed, without byte code."""
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(p.stat().st_size for p in paths if p.is_file() and p.suffix != ".pyc") / 1e6


def check_footprint(name: str, venv: Path, torch: set[str]) -> str:
    """A line on what `name` brought besides `torch`. Raises ValueError if it is too much."""
    (site_packages,) = venv.glob("lib/python*/site-packages")
    installed = {canonicalize_name(d.name): d for d in distributions(path=[str(site_packages)])}
    brought = {n: megabytes(d) for n, d in installed.items() if n not in torch}
    total = sum(brought.values())
    by_size = sorted(brought.items(), key=lambda item: -item[1])
    line = f"{name}: {len(brought)} packages, {total:.1f} MB over torch and torchvision"
    packages, size = MOST_OF.get(name, MOST)
    if projects()[name].kind != "suite" and (len(brought) > packages or total > size):
        raise ValueError(f"{line}; at most {packages} and {size:.0f} MB are promised: {by_size}")
    wanted = {Requirement(line).name for line in projects()[name].table["project"]["dependencies"]}
    if "torchvision" in installed and "torchvision" not in wanted:
        raise ValueError(f"{name} brings torchvision, which it does not ask for")
    return f"{line} ({', '.join(f'{n} {size:.1f}' for n, size in by_size)})"


def check(name: str, wheels: dict[str, Path], torch: set[str], folder: Path) -> str:
    """Install one wheel alone in a new `folder` and start it; returns a line about its size."""
    folder.mkdir()
    venv, module = folder / "venv", name.replace("-", "_")
    python = venv / "bin" / "python"
    check_contents(wheels[name], module)
    run("uv", "venv", "--quiet", "--python", sys.executable, venv, cwd=folder)
    install = ("uv", "pip", "install", "--quiet", "--python", python, "-c", CONSTRAINTS)
    run(*install, *needed(name, wheels), cwd=folder)
    line = check_footprint(name, venv, torch)
    script = folder / "import_all.py"
    script.write_text(IMPORT_ALL, "utf-8")
    run(python, "-I", script, module, cwd=folder)
    for command in projects()[name].table["project"].get("scripts", {}):
        run(venv / "bin" / command, "--help", cwd=folder)
        run(venv / "bin" / command, "train", *METHOD.get(name, ()), *SHORT, "--out", folder / "run", cwd=folder)
    shutil.rmtree(folder)
    return line


def main() -> None:
    """Check the named distributions, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="distributions, such as ssl-mae; all by default")
    names = parser.parse_args().names
    if unknown := set(names) - set(projects()):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(projects())}")
    with tempfile.TemporaryDirectory(prefix="wheels-") as temporary:
        folder = Path(temporary)
        torch = torch_alone(folder)
        wheels = {name: build(project.folder, folder / f"{name}-dist") for name, project in projects().items()}
        lines = [check(name, wheels, torch, folder / name) for name in names or projects()]
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
