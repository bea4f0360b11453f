"""Parts of a source: what is held out of training, and which samples a run was trained on.

A share is held out by a hash of each sample, so it depends neither on the order of the samples nor
on what else is there: files that are added later leave the others where they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ssl_core.errors import BadSample
from ssl_core.hub.checkpoint import checkpoint_of
from ssl_train.data.names import digest
from ssl_train.data.sources import Source, column

By = Literal["content", "name"]

FIFTH = 0.2
MANY = 100_000
"""Up to so many samples are told apart by what they hold, more by their names."""
SEEN = "trained_on.keys"
"""The file of a run folder that holds the keys of the samples that its weights have seen, eight
bytes each."""


class Subset:
    """Some samples of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[indices]
        groups = getattr(source, "groups", None)
        self.groups = None if groups is None else groups[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> dict[str, Any]:
        return self.source.load(int(self.indices[index]))

    def encoded(self, index: int) -> dict[str, Any]:
        return getattr(self.source, "encoded", self.source.load)(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return digest(self.source.fingerprint().encode(), self.indices)


def taken(source: Any, chosen: np.ndarray) -> Any:
    """The samples of `source` where `chosen`, bool (n,), is true: as its own `part` makes them, if
    it has one."""
    make = source.part if hasattr(source, "part") else lambda indices: Subset(source, indices)
    return make(np.flatnonzero(chosen))


def told_by(source: Any) -> By:
    """What the keys of a source are made of."""
    return "content" if hasattr(source, "content") and len(source) <= getattr(source, "many", MANY) else "name"


def keys_of(source: Any, by: By) -> np.ndarray:
    """A hash of each sample, uint64 (n,): if it is by content, copies have the same.

    A sample whose content cannot be read has the hash of its name.
    """

    def key(index: int) -> int:
        content = source.name(index).encode(errors="surrogateescape")
        if by == "content":
            try:
                content = source.content(index)
            except (OSError, BadSample):  # the loader reports it
                pass
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")

    return np.fromiter(map(key, range(len(source))), np.uint64, len(source))


def groups_of(source: Any, name: str) -> np.ndarray:
    """A hash of each sample's cell in the column `name`, uint64 (n,); a sample whose cell is empty
    is a group of its own. Raises DataError."""
    cells = [cell or f"\0{source.name(index)}" for index, cell in enumerate(column(source, name))]
    hashes = (hashlib.sha256(cell.encode(errors="surrogateescape")).digest()[:8] for cell in cells)
    return np.array([int.from_bytes(digits, "big") for digits in hashes], np.uint64)


def kinds_of(labels: np.ndarray) -> np.ndarray:
    """Labels (n,) by which samples are divided; those with findings (n, c) are all of one kind."""
    return labels if labels.ndim == 1 else np.where((labels >= 0).any(axis=1), 0, -1)


def held_out(keys: np.ndarray, share: float, labels: np.ndarray | None = None) -> np.ndarray:
    """Which samples are held out, bool (n,): those whose keys are in the first `share` of all
    possible keys.

    If some samples have labels, only these and their copies are drawn. Equal keys stay together.
    There are three exceptions. Each class keeps a sample for training. A class of 1 / `share`
    different samples or more has one held out. If any class has two, the whole has one held out.
    """
    kinds = np.zeros(len(keys), np.int64) if labels is None or not (labels >= 0).any() else kinds_of(labels)
    drawn = np.isin(keys, keys[kinds >= 0])
    below = keys / 2.0**64 < share
    if not share or not len(keys):
        return drawn & False

    # the first and the last of the different keys of each class, and how many there are
    order = np.lexsort((keys, kinds))[np.count_nonzero(kinds < 0) :]
    new = np.append(True, (np.diff(kinds[order]) > 0) | (np.diff(keys[order]) > 0))
    kind, key = kinds[order][new], keys[order][new]
    _, first, count = np.unique(kind, return_index=True, return_counts=True)
    low, high = key[first], key[first + count - 1]

    promised, kept = low[count * share >= 1], high[(high / 2.0**64 < share) | (count == 1)]
    held = ((drawn & below) | np.isin(keys, promised)) & ~np.isin(keys, kept)
    spare = low[(count > 1) & ~np.isin(low, high)]
    return held if held.any() or not len(spare) else keys == spare.min()


class Trained(NamedTuple):
    """What a run says about the samples that its weights have seen."""

    fingerprint: str = ""
    """of its training data; empty if it is not known"""
    held_out: float | None = None
    """share that was held out of them; None if they have a test part of their own"""
    by: By = "name"
    keys: np.ndarray | None = None
    """of all samples that were seen; None if they are not known"""
    start: str | None = None
    """weights that it started from, if what they have seen is not among the keys"""
    data: str = ""
    """name of its training data"""
    group: str | None = None
    """column by whose cells they were divided; the keys have hashes of those too"""

    def knows(self, keys: np.ndarray) -> bool:
        """Whether these are the keys of the run's data, to which some may have been added."""
        if self.keys is None:
            return False
        return 2 * np.isin(keys, self.keys).sum() >= min(len(keys), len(self.keys)) > 0


class Division(NamedTuple):
    """Data without a test part, divided."""

    share: float
    by: By
    words: str
    """how they were divided, as a line for the terminal"""
    parts: dict[str, Any]
    """"train", and "test" if anything is held out"""
    keys: dict[str, np.ndarray]
    """of the samples of each part"""


def divide(whole: Any, share: float | None, run: Trained | None) -> Division:
    """Hold out a share of `whole`: as asked, else what the `run` held out, if these are its data.

    Samples of one of `whole.groups`, where it has them, stay together. For a new run, without
    `run`, it is a fifth if there are labels or captions.
    """
    by = told_by(whole) if run is None or run.keys is None else run.by
    keys = keys_of(whole, by)
    if share is None and run is not None:
        share = (run.held_out or 0.0) if run.knows(keys) else 0.0
    elif share is None:
        share = FIFTH if hasattr(whole, "texts") or has_labels(whole) else 0.0
    groups = getattr(whole, "groups", None)
    together = keys if groups is None else groups
    held = held_out(together, share, whole.labels)
    if run is not None and run.keys is not None:
        held &= ~np.isin(together, run.keys)  # an exception for a small class that has grown since
    if not held.any():
        why = "so evaluations are of what was trained on; --held-out 0.2 changes it"
        why = f"for no class has two different {'samples' if groups is None else 'groups'}" if share else why
        return Division(share, by, f"held out: nothing, {why}", {"train": whole}, {"train": keys})
    parts = {"train": taken(whole, ~held), "test": taken(whole, held)}
    words = f"held out: {len(parts['test']):,} of {len(whole):,} samples, by a hash of their {by if groups is None else 'group'}"
    return Division(
        share, by, f"{words}; --held-out 0 trains on all", parts, {"train": keys[~held], "test": keys[held]}
    )


def has_labels(source: Any) -> bool:
    return source.labels is not None and bool((source.labels >= 0).any())


def trained_on(weights: str | Path) -> Trained:
    """What a run was trained on, by a run folder, a step of it or its file of weights; nothing is
    known of others."""
    step = checkpoint_of(weights)
    run = Path(weights) if step is None else step.parents[1]
    run = run.parent if run.is_file() else run
    try:
        stored = json.loads((run / "run.json").read_text("utf-8"))
        keys = np.fromfile(run / SEEN, np.uint64) if (run / SEEN).exists() else None
        split = stored["split"]
        facts = stored["held_out"], split["by"], keys, split["start"], str(stored["data"])
        return Trained(stored["data_fingerprint"], *facts, split.get("group"))
    except (OSError, ValueError, LookupError, TypeError):  # a Hub id, a file, a damaged record: not known
        return Trained()
