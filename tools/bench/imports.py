"""What a package costs before it does anything: import time, packages and MB on top of torch.

Each package is installed into its own environment, with torch, torchvision and the versions of
constraints.txt; ours come from this tree. The warm-up round compiles the byte code. Needs uv, and
the package index or uv's cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import measure
from measure import Result, Time

ROOT = Path(__file__).resolve().parents[2]
BASE = ("torch", "torchvision")
TIMED = """
import sys, time
import torch
cpu, wall = time.process_time(), time.perf_counter()
exec(sys.argv[1])
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


class Package(NamedTuple):
    install: tuple[str, ...]
    statements: tuple[str, ...]
    """the plain import, and that of the masked autoencoder if there is one"""


PACKAGES = {
    "ssl-mae": Package(
        tuple(str(ROOT / folder) for folder in ("shared-core", "packages/ssl-train", "packages/ssl-mae")),
        ("import ssl_mae", "from ssl_mae import MAE"),
    ),
    "lightly": Package(
        ("lightly[timm]",), ("import lightly", "from lightly.models.modules import MaskedVisionTransformerTIMM")
    ),
    "timm": Package(("timm",), ("import timm",)),
    "transformers": Package(
        ("transformers",), ("import transformers", "from transformers import ViTMAEForPreTraining")
    ),
    "open_clip": Package(("open_clip_torch",), ("import open_clip",)),
}


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--packages", nargs="+", choices=[*PACKAGES], default=[*PACKAGES])
    args = flags.parse_args()
    chosen = measure.settings(args)
    with tempfile.TemporaryDirectory(prefix="imports-") as folder:
        results = measured(args.packages, Path(folder), chosen.warmup, chosen.rounds)
    head = ["statement", "over import torch", "range", "packages over torch", "MB over torch"]
    rows = [row(result, chosen.clock) for result in results]
    measure.report("Imports", results, chosen, measure.markdown(head, rows))


def measured(names: list[str], folder: Path, warmup: int, rounds: int) -> list[Result]:
    """One result per statement; a peer that cannot be installed is marked as missing."""
    base = sizes(install(folder / "base", BASE))
    pairs: list[tuple[Result, Path]] = []
    results = []
    for name in names:
        try:
            python = install(folder / name, (*BASE, *PACKAGES[name].install))
        except subprocess.CalledProcessError:
            if name == "ssl-mae":
                raise
            results.append(Result(name, missing=[name]))
            continue
        brought = [size for key, size in sizes(python).items() if key not in base]
        facts = {"packages": len(brought), "MB": f"{sum(brought):.1f}"}
        new = [Result(statement, facts=facts) for statement in PACKAGES[name].statements]
        pairs += [(result, python) for result in new]
        results += new
    for i in range(warmup + rounds):
        for result, python in pairs if i % 2 == 0 else reversed(pairs):
            cpu, wall = map(float, output(python, "-I", "-c", TIMED, result.case).split())
            if i >= warmup:
                result.rounds.append({"import": Time(cpu, wall)})
    return results


def row(result: Result, clock: str) -> list[str]:
    if result.missing:
        return [result.case, "could not be installed"]
    seconds = result.seconds(clock)
    spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
    return [result.case, f"{statistics.median(seconds):.2f} s", spread, *map(str, result.facts.values())]


def install(venv: Path, requirements: tuple[str, ...]) -> Path:
    """The Python of a new environment with `requirements`.

    Raises CalledProcessError if they cannot be installed.
    """
    python = venv / "bin" / "python"
    output("uv", "venv", "--quiet", "--python", sys.executable, venv)
    command = ("uv", "pip", "install", "--quiet", "--python", python)
    output(*command, "-c", ROOT / "constraints.txt", *requirements)
    return python


def output(*command: str | Path) -> str:
    """What a command prints; it does not see the variables that lead Python back to this tree."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=env).stdout


def sizes(python: Path) -> dict[str, float]:
    """MB of each distribution in the environment of `python`, without byte code."""
    (folder,) = python.parents[1].glob("lib/python*/site-packages")
    found = {}
    for distribution in distributions(path=[str(folder)]):
        paths = [Path(str(file.locate())) for file in distribution.files or ()]
        found[distribution.name] = sum(p.stat().st_size for p in paths if p.is_file() and p.suffix != ".pyc") / 1e6
    return found


if __name__ == "__main__":
    main()
