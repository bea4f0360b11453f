"""The estimate of a run's memory beside what the run takes.

    python tools/memory.py              every method, at two batch sizes
    python tools/memory.py mae simclr   some of them

A row is a run of three steps on the built-in data in a process of its own, with the settings that
are chosen for a small folder on a CPU. Measured is the peak of its resident memory over what it had
after its imports. Prints both, and the estimate over the measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from projects import methods

from ssl_core.method import load

BATCHES = (32, 128)
SIDE = 96


def measure(package: str, name: str, batch: int) -> dict[str, float]:
    """{"estimate", "measured"} in bytes, of this process."""
    from ssl_train.cost import cost_of
    from ssl_train.opened import Opened
    from ssl_train.options import RunOptions
    from ssl_train.run import run

    recipe = load(f"{package}.config:RECIPES[{name}]")
    config: Any = load(recipe.fitted)("tiny", SIDE, 8 * batch)
    changes: dict[str, Any] = {"batch_size": batch, "precision": "fp32", "warmup_epochs": 0.0}
    if name == "beit":
        changes |= {"tokenizer": "demo"}
    config = dataclasses.replace(config, **changes)
    with tempfile.TemporaryDirectory() as folder:
        opened = Opened.to_train(recipe, config, data=None, device="cpu")
        steps = len(opened.raw("train")) // batch
        config = dataclasses.replace(config, epochs=3 / steps)
        before = resident("VmRSS")
        opened = Opened.to_train(recipe, config, data=None, device="cpu")
        estimate = cost_of(recipe, opened.method, opened.device).bytes(batch)
        run(opened, Path(folder) / "run", RunOptions(device="cpu", workers=0, force=True))
    return {"estimate": estimate, "measured": resident("VmHWM") - before}


def resident(field: str) -> int:
    """Bytes of resident memory of this process: VmRSS now, VmHWM the most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(lines[field].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--one", nargs=3, metavar=("PACKAGE", "METHOD", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1], int(args.one[2]))))
        return
    print(f"{'method':16s}{'batch':>6s}{'estimate':>11s}{'measured':>11s}{'ratio':>7s}")
    for project in methods().values():
        package = project.module.name
        for name, recipe in load(f"{package}.config:RECIPES").items():
            if recipe.fitted is None or (args.methods and name not in args.methods):
                continue
            for batch in BATCHES:
                command = [sys.executable, __file__, "--one", package, name, str(batch)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"{name:16s}{batch:6d}  {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                found = json.loads(done.stdout.strip().splitlines()[-1])
                ratio = found["estimate"] / found["measured"]
                sizes = f"{found['estimate'] / 1e6:8.0f} MB{found['measured'] / 1e6:8.0f} MB"
                print(f"{name:16s}{batch:6d}{sizes}{ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
