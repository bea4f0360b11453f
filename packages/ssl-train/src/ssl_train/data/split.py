"""Training and test parts of labelled data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.errors import DataError, NoTestSplit
from ssl_train.data.sources import Source, digest, open_source


def open_images(data: str | Path | None, *, config: Any, split: str = "train") -> Source:
    """`open_source` for an image method's config: its channels, and its size for pictures made on the fly."""
    return open_source(data, channels=config.in_channels, split=split, size=max(config.size))


class Subset:
    """Some samples of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> dict[str, Any]:
        return self.source.load(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return digest(self.source.fingerprint().encode(), self.indices)


def train_and_test(
    data: str | Path | None,
    test: str | Path | None,
    *,
    config: Any,
    seed: int = 0,
    source: Callable[..., Source] = open_images,
) -> tuple[Source, Source, str]:
    """(train, test, how they were split) of labelled data.

    `test` where it is given; else the split that the data has; else a fifth of every class is held out, the same for
    every method. `source` opens data, as a recipe's does. Raises DataError when the data has no labels.
    """
    train = source(data, config=config, split="train")
    if train.labels is None or not (train.labels >= 0).any():
        raise DataError(
            f"{data} has no labels, and an evaluation needs them: one sub-folder per class, or a CSV with a column 'label'"
        )
    if test is not None:
        return train, source(test, config=config, split="train"), f"test data: {test}"
    try:
        return train, source(data, config=config, split="test"), "the data's own split"
    except NoTestSplit:
        held = held_out(train.labels, 0.2, seed)
        kept = np.setdiff1d(np.arange(len(train)), held)
        return Subset(train, kept), Subset(train, held), "a fifth of every class held out"


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of `share` of every class, at least one sample of each with two or more; seeded per class."""
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * share)), len(members) - 1)
        chosen.append(np.random.default_rng((seed, int(label))).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))
