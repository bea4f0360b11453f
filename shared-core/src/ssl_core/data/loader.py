"""Training batches as a function of (seed, step).

Batch k holds the k-th slice of its epoch's permutation, split over micro-batches and ranks; a sample's randomness is
seeded by (seed, epoch, sample). So the order does not depend on workers, processes or where a run was resumed, and the
only state of the data is the step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_core import distributed
from ssl_core.config import ConfigError
from ssl_core.data.images import BadSample
from ssl_core.errors import InputError


class TooManyBadSamples(InputError):
    """More samples were unreadable than max(10, 1 % of the data)."""


@dataclass(frozen=True)
class Plan:
    """Which samples make which batch: `samples` of them, `batch_size` a step, over `epochs`."""

    samples: int
    batch_size: int
    epochs: float
    seed: int

    def __post_init__(self) -> None:
        if self.samples < self.batch_size:
            raise ConfigError(
                f"the data has {self.samples} samples, fewer than one batch of {self.batch_size}: "
                f"use --batch-size {max(1, self.samples // 2)} or less, or more data"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def micro_batches(
        self, start: int, *, parts: int, rank: int, world: int
    ) -> Iterator[list[tuple[int, int]]]:
        """(epoch, sample) keys of this rank's micro-batches, `parts` for each step from `start` on."""
        if self.batch_size % (parts * world):
            raise ConfigError(
                f"batch_size = {self.batch_size} cannot be split over {world} processes x {parts} micro-batches"
            )
        size = self.batch_size // (parts * world)
        last_epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start, self.steps):
            epoch, k = divmod(step, self.steps_per_epoch)
            if epoch != last_epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
                last_epoch = epoch
            batch = order[k * self.batch_size : (k + 1) * self.batch_size].reshape(
                parts, world, size
            )
            for part in batch[:, rank].tolist():
                yield [(epoch, sample) for sample in part]


class _Samples(Dataset):
    """One sample as the method's `transform` makes it, or a deterministic other one where it is unreadable."""

    def __init__(self, source: Any, transform: Any, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, wanted = key
        index, bad = wanted, []
        substitutes = np.random.default_rng((self.seed, epoch, wanted, 1))
        while True:
            try:
                sample = self.source.load(index)
                break
            except BadSample as error:
                bad.append((index, self.source.name(index), str(error)))
                if len(bad) > 100:
                    raise TooManyBadSamples(
                        f"100 samples in a row are unreadable, the last: {bad[-1][1:]}"
                    ) from error
                index = int(substitutes.integers(len(self.source)))
        sample = self.transform(sample, np.random.default_rng((self.seed, epoch, wanted, 0)))
        sample["index"] = torch.tensor(index)
        if self.source.labels is not None:
            sample["label"] = torch.tensor(int(self.source.labels[index]))
        return {"sample": sample, "bad": bad}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the tensors of a list of samples key by key; a list of tensors becomes a list of batches."""
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        if isinstance(first, Tensor):
            batch[key] = torch.stack([s[key] for s in samples])
        else:
            batch[key] = [
                torch.stack(parts) for parts in zip(*(s[key] for s in samples), strict=True)
            ]
    return batch


def _collate_with_bad(
    items: list[dict[str, Any]],
) -> tuple[dict[str, Any], list[tuple[int, str, str]]]:
    return collate([item["sample"] for item in items]), [
        bad for item in items for bad in item["bad"]
    ]


def default_workers() -> int:
    """Half of the cores this process may use, 1 to 8."""
    return max(
        1, min(8, len(os.sched_getaffinity(0)) // 2 if hasattr(os, "sched_getaffinity") else 2)
    )


def _init_worker(worker: int) -> None:
    # The main process decides when to stop; a signal to the whole group must not take its loader away before it saved.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class Batches:
    """Iterator over steps from `start` on, each a list of `parts` micro-batches of this rank.

    Unreadable samples are collected in `bad` (index -> (name, reason)).
    Raises TooManyBadSamples past max(10, 1 % of the data), RuntimeError naming the step and the samples when a worker dies.
    """

    def __init__(
        self,
        source: Any,
        transform: Any,
        plan: Plan,
        *,
        start: int = 0,
        parts: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = 300,
    ) -> None:
        self.source, self.parts, self.step = source, parts, start
        self.bad: dict[int, tuple[str, str]] = {}
        self._keys = lambda: plan.micro_batches(
            start, parts=parts, rank=distributed.rank(), world=distributed.world_size()
        )
        next(self._keys(), None)  # a batch that cannot be split is told before workers start
        self._loader = DataLoader(
            _Samples(source, transform, plan.seed),
            batch_sampler=_Once(self._keys),
            num_workers=workers,
            collate_fn=_collate_with_bad,
            pin_memory=pin_memory,
            timeout=timeout if workers else 0,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        keys = self._keys()
        batches = iter(self._loader)
        for expected in keys:
            step_keys = [expected, *(next(keys) for _ in range(self.parts - 1))]
            parts = []
            for part in step_keys:
                try:
                    batch, bad = next(batches)
                except RuntimeError as error:
                    if "DataLoader" not in str(error):
                        raise
                    names = [self.source.name(sample) for _, sample in part[:3]]
                    raise RuntimeError(f"step {self.step}, samples {names} …: {error}") from error
                self._note(bad)
                parts.append(batch)
            yield parts
            self.step += 1

    def _note(self, bad: list[tuple[int, str, str]]) -> None:
        for index, name, reason in bad:
            self.bad.setdefault(index, (name, reason))
        limit = max(10, len(self.source) // 100)
        if len(self.bad) > limit:
            shown = "\n  ".join(
                f"{name}: {reason}" for name, reason in list(self.bad.values())[:10]
            )
            raise TooManyBadSamples(
                f"{len(self.bad)} of {len(self.source)} samples are unreadable, more than {limit}; the first:\n  {shown}"
            )


class _Once:
    """A batch sampler whose batches are made as they are asked for."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.keys()
