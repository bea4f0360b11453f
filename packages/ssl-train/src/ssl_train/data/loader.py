"""Training batches as a function of (seed, step).

Batch k holds the k-th slice of its epoch's permutation, split over micro-batches and ranks; a
sample's randomness is seeded by (seed, epoch, sample). So the order does not depend on workers,
processes or where a run was resumed, and the only state of the data is the step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ssl_core import distributed
from ssl_core.config import ConfigError
from ssl_core.errors import BadSample
from ssl_train.data.files import printable
from ssl_train.data.images import Encoded
from ssl_train.errors import TrainingError
from ssl_train.processes import cores
from ssl_train.stop import SIGNALS

TRIES = 100
"""Substitutes that are tried for one unreadable sample."""
ONE_COLOUR = "one colour all over"
"""What is said of a picture from which nothing can be learned."""


class TooManyBadSamples(TrainingError):
    """More samples were unreadable than max(10, 1 % of the data)."""


class LoaderError(TrainingError):
    """A loader process died or hangs; the message names it and the sample that it was reading."""


@dataclass(frozen=True)
class Plan:
    """Which samples make which batch: `samples` of them, `batch_size` a step, over `epochs`."""

    samples: int
    batch_size: int
    epochs: float
    seed: int

    def __post_init__(self) -> None:
        if self.samples < self.batch_size:
            smaller = f"use --batch-size {self.samples // 2} or less, or " if self.samples >= 4 else "it needs "
            what = f"the data has {self.samples} samples, fewer than one batch of {self.batch_size}: {smaller}more data"
            raise ConfigError(what)

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def micro_batches(self, start: int, *, parts: int, rank: int, world: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, sample) keys of this rank's micro-batches, `parts` for each step from `start`
        on."""
        if self.batch_size % (parts * world):
            what = f"batch_size = {self.batch_size} cannot be split over {world} processes x {parts} micro-batches"
            raise ConfigError(what)
        size = self.batch_size // (parts * world)
        last_epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start, self.steps):
            epoch, k = divmod(step, self.steps_per_epoch)
            if epoch != last_epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
                last_epoch = epoch
            batch = order[k * self.batch_size : (k + 1) * self.batch_size].reshape(parts, world, size)
            for part in batch[:, rank].tolist():
                yield [(epoch, sample) for sample in part]


class _Samples(Dataset):
    """One sample as the method's `transform` makes it. An unreadable sample is replaced by another,
    chosen deterministically."""

    def __init__(self, source: Any, transform: Any, seed: int, workers: int) -> None:
        self.source, self.transform, self.seed, self.parent = source, transform, seed, os.getpid()
        # (pid, sample that is being read or -1) of every worker, for the error about one that dies
        # or hangs
        self.reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
        # a view that begins with its crops needs no whole picture
        lazy = getattr(transform, "crops_first", False)
        self._load = getattr(source, "encoded", source.load) if lazy else source.load

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """{"sample": what the transform made, or None if TRIES substitutes were unreadable too,
        "bad": [(index, name, reason), …], "blank": whether it is a picture of one colour}."""
        epoch, wanted = key
        index, bad = wanted, []
        substitutes = np.random.default_rng((self.seed, epoch, wanted, 1))
        while True:
            self._mark(index)
            try:
                loaded = self._load(index)
                sample = self.transform(loaded, np.random.default_rng((self.seed, epoch, wanted, 0)))
                image = loaded.get("image")
                blank = is_one_colour(image.pixels() if isinstance(image, Encoded) else image)
                break
            except BadSample as error:
                bad.append((index, self.source.name(index), str(error)))
                if len(bad) > TRIES:
                    return {"sample": None, "bad": bad, "blank": False}
                index = int(substitutes.integers(len(self.source)))
        sample["index"] = torch.tensor(index)
        if self.source.labels is not None:
            sample["label"] = torch.as_tensor(self.source.labels[index])
        self._mark(-1)
        return {"sample": sample, "bad": bad, "blank": blank}

    def _mark(self, index: int) -> None:
        if (worker := get_worker_info()) is not None:
            self.reading[worker.id, 1] = index


def is_one_colour(image: Tensor | None) -> bool:
    """Whether all pixels of an image (c, h, w) are equal; for most images a few of them tell."""
    if image is None:
        return False
    pixels = np.asarray(image)
    return all(bool((some == pixels[:, :1, :1]).all()) for some in (pixels[:, ::16, ::16], pixels))


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the tensors of a list of samples key by key; a list of tensors becomes a list of
    batches."""
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        if isinstance(first, Tensor):
            batch[key] = torch.stack([s[key] for s in samples])
        else:
            batch[key] = [torch.stack(parts) for parts in zip(*(s[key] for s in samples), strict=True)]
    return batch


def _collate_with_bad(
    items: list[dict[str, Any]],
) -> tuple[dict[str, Any] | None, list[tuple[int, str, str]], list[int]]:
    """The batch, what was unreadable, and the indices of pictures of one colour."""
    samples = [item["sample"] for item in items]
    batch = None if any(sample is None for sample in samples) else _packed(collate(samples))
    blank = [int(item["sample"]["index"]) for item in items if item["blank"]]
    return batch, [bad for item in items for bad in item["bad"]], blank


def _packed(batch: Any) -> Any:
    """A batch as it leaves a worker: small tensors by value, since a handle to shared memory costs
    more than a copy."""
    if isinstance(batch, Tensor):
        return batch.numpy() if batch.nbytes < 2**20 else batch
    return [_packed(x) for x in batch] if isinstance(batch, list) else {k: _packed(v) for k, v in batch.items()}


def _unpacked(batch: Any) -> Any:
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch)
    if isinstance(batch, Tensor):
        return batch
    return [_unpacked(x) for x in batch] if isinstance(batch, list) else {k: _unpacked(v) for k, v in batch.items()}


def default_workers() -> int:
    """Half of the cores that this process may use, 1 to 8."""
    return max(1, min(8, cores() // 2))


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals to this process, and to those that it forks inside the block, arrive when the block
    ends."""
    if sys.platform == "win32":  # which neither forks nor masks signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(worker: int) -> None:
    # The main process decides when to stop; a signal to the whole group must not take its loader
    # away before it saved.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if (info := get_worker_info()) is not None:
        info.dataset.reading[worker, 0] = os.getpid()  # type: ignore[attr-defined]
        parent: int = info.dataset.parent  # type: ignore[attr-defined]
        # If the main process was killed since this one started, torch would never notice: it begins
        # to watch later, and then it watches whoever is the parent now.
        _leave_orphaned(parent)
        Finalize(None, _leave_orphaned, args=(parent,), exitpriority=0)


def _leave_orphaned(parent: int) -> None:
    """End this worker at once if the main process, of pid `parent`, was killed: nobody reads what
    the worker still has to hand over."""
    if multiprocessing.get_start_method() == "forkserver":
        # The server is the parent of every worker. It holds no end of the pipe that `is_alive`
        # reads, but under fork the workers that started later do.
        main = multiprocessing.parent_process()
        orphaned = main is not None and not main.is_alive()
    else:
        orphaned = os.getppid() != parent
    if orphaned:
        os._exit(1)


class Batches:
    """Iterator over steps from `start` on, each a list of `parts` micro-batches of this rank.

    Unreadable samples are collected in `bad` (index -> (name, reason)); warnings name the first
    ten. Pictures of one colour are collected in `blank` in the same way. Past max(10, 1 % of the
    data), `spoilt` is the error that the loop has to raise for `bad`; the batch is still whole, so
    the loop can save first. If a sample has no readable substitute, there is no batch and
    TooManyBadSamples is raised here. Loop inside `watched()`, which raises LoaderError for a worker
    that dies or takes longer than `timeout` seconds for a batch.
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
        self.blank: dict[int, tuple[str, str]] = {}
        self.spoilt: TooManyBadSamples | None = None
        self._workers: list[Any] = []
        rank, world = distributed.rank(), distributed.world_size()
        self._keys = lambda: plan.micro_batches(start, parts=parts, rank=rank, world=world)
        next(self._keys(), None)  # raises for a batch that cannot be split, before workers start
        self._samples = _Samples(source, transform, plan.seed, workers)
        batching = {"batch_sampler": _Once(self._keys), "collate_fn": _collate_with_bad, "pin_memory": pin_memory}
        if workers:
            batching |= {"timeout": timeout, "prefetch_factor": 4, "worker_init_fn": _init_worker}
        # its own generator, since iterating over a DataLoader draws from the global one
        self._loader = DataLoader(self._samples, num_workers=workers, generator=torch.Generator(), **batching)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        parts: list[dict[str, Any]] = []
        before = multiprocessing.active_children()
        with _signals_wait():  # until the workers that are started here ignore them
            batches = iter(self._loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in before]
        for batch, bad, blank in batches:
            self._note(bad)
            self.blank.update({index: (self.source.name(index), ONE_COLOUR) for index in blank})
            if batch is None:
                raise TooManyBadSamples(
                    f"{TRIES} samples in a row are unreadable, the last: {printable(': '.join(bad[-1][1:]))}"
                )
            parts.append(_unpacked(batch))
            if len(parts) == self.parts:
                yield parts
                parts = []
                self.step += 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Context of the loop: if it fails, end the workers, and name the worker and the sample in
        torch's error about a loader.

        It goes around the loop, because torch raises that error from a signal handler, wherever the
        loop is.
        """
        try:
            yield
        except BaseException as error:
            reading = self._end_workers()
            if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader "):
                raise
            read = "; ".join(
                f"process {pid} was reading {printable(self.source.name(i))}" for pid, i in reading if i >= 0
            )
            message = f"step {self.step}: {str(error).strip()} ({read or 'no sample was being read'})"
            raise LoaderError(message) from error

    def _end_workers(self) -> list[tuple[int, int]]:
        """End every worker. Returns (pid, sample or -1) of those that had died, or of all if none
        had."""
        reading = [(pid, index) for pid, index in self._samples.reading.tolist() if pid > 0]
        # Workers ignore SIGTERM, so torch cannot stop them that way; if we kill them, torch's
        # SIGCHLD handler reports an error. So we disable that handler first.
        main, handler = threading.current_thread() is threading.main_thread(), None
        if sys.platform != "win32" and main:
            handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        alive = [worker for worker in self._workers if worker.is_alive()]
        for worker in alive:
            worker.kill()
        for worker in alive:
            worker.join()
        if sys.platform != "win32" and main:
            signal.signal(signal.SIGCHLD, handler)
        ended = {worker.pid for worker in alive}
        return [entry for entry in reading if entry[0] not in ended] or reading

    def _note(self, bad: list[tuple[int, str, str]]) -> None:
        for index, name, reason in bad:
            if index not in self.bad:
                self.bad[index] = (name, reason)
                if len(self.bad) <= 10:
                    shown = printable(name)
                    warnings.warn(f"{shown} is unreadable, another sample takes its place: {reason}", stacklevel=2)
        limit = max(10, len(self.source) // 100)
        if len(self.bad) > limit:
            shown = "\n  ".join(f"{printable(name)}: {reason}" for name, reason in list(self.bad.values())[:10])
            what = f"{len(self.bad)} of {len(self.source)} samples are unreadable, more than {limit};"
            self.spoilt = TooManyBadSamples(f"{what} the first:\n  {shown}")


class _Once:
    """A batch sampler that makes each batch when the loader asks for it."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.keys()
