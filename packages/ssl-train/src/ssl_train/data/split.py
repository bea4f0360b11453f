"""Parts of a source: some of its samples, and a share of every class that is held out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_train.data.names import digest
from ssl_train.data.sources import Source


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


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of `share` of every class, at least one sample of each class that has two or
    more.

    The draw is seeded per class. Samples without a label, -1, are never drawn.
    """
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * share)), len(members) - 1)
        chosen.append(np.random.default_rng((seed, int(label))).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))
