"""Memory of the loader over a million paths.

A list of `str` would be copied into every worker.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools.faults.table import Row

from ssl_train.data.images import ImageFiles
from ssl_train.data.loader import Batches, Plan

PATHS, WORKERS, EPOCHS, BATCH = 1_000_000, 4, 2, 512


class Paths(ImageFiles):
    """Samples of which only the path is read."""

    def load(self, index: int) -> dict[str, Any]:
        return {"image": torch.tensor(len(self.paths[index]))}


def transform(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"length": sample["image"]}


def memory() -> list[Row]:
    """Growth of the memory of the main process and its workers, until the last epoch ends."""
    names = (f"class-{i % 1000:04d}/a-rather-long-name-of-a-picture-{i:08d}.jpeg" for i in range(PATHS))
    source = Paths(Path("nowhere"), names, 3)
    plan = Plan(len(source), BATCH, EPOCHS, 0)
    gc.freeze()  # otherwise garbage collection in workers copies the interpreter's own objects
    warnings.filterwarnings("ignore", "This DataLoader will create")  # we want more processes than cores
    batches = Batches(source, transform, plan, workers=WORKERS)
    sizes = []
    with batches.watched():
        for step, _ in enumerate(batches):
            if step % (plan.steps // 20) == 0 and step:
                sizes.append(_held())
    growth = sizes[-1] / sizes[0] - 1
    detail = f"{sizes[0] / 2**20:.0f} MiB at first, {sizes[-1] / 2**20:.0f} MiB at the end, {growth:+.1%}"
    what = f"{PATHS:,} paths, {WORKERS} workers, {EPOCHS} epochs"
    return [Row(what, "memory grows by less than 5 %", 1, int(growth < 0.05), detail)]


def _held() -> int:
    """Bytes of this process and its workers; shared pages count once."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines()
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
