"""Counts of one, two and three tokens: what a language model has to beat.

    P_1(c) = (n(c) + 1) / (n + v)
    P_k(c | h) = (n(h c) + T(h) · P_{k−1}(c | h')) / (n(h) + T(h))

where T(h) is the number of different tokens seen after h, and h' is h without its first token
(Witten and Bell 1991).
"""

from __future__ import annotations

import numpy as np


class NGram:
    """Counts of 1 to `order` ≤ 3 neighbours in a stream int64 (n,) over `vocabulary` tokens."""

    def __init__(self, stream: np.ndarray, vocabulary: int, order: int) -> None:
        if not 1 <= order <= 3:
            raise ValueError(f"order = {order}: 1, 2 or 3")
        self.vocabulary, self.order = vocabulary, order
        self.unigrams = np.bincount(stream, minlength=vocabulary)
        # per order: sorted codes of its k tokens and their counts n(h c); codes of the histories,
        # n(h) and T(h)
        self.tables = []
        for k in range(2, order + 1):
            codes, counts = np.unique(self._codes(stream, k), return_counts=True)
            histories, first = np.unique(codes // vocabulary, return_index=True)
            kinds = np.diff(np.append(first, len(codes)))
            self.tables.append((codes, counts, histories, np.add.reduceat(counts, first), kinds))

    def nll(self, stream: np.ndarray) -> np.ndarray:
        """−log p, in nats, of another stream's tokens after its first order - 1."""
        p = (self.unigrams + 1.0)[stream] / (self.unigrams.sum() + self.vocabulary)
        for k, (codes, counts, histories, totals, kinds) in enumerate(self.tables, 2):
            seen = self._codes(stream, k)
            together = _find(codes, counts, seen)
            history = seen // self.vocabulary
            n, t = _find(histories, totals, history), _find(histories, kinds, history)
            p = np.where(n > 0, (together + t * p[1:]) / np.maximum(n + t, 1), p[1:])
        return -np.log(p)

    def _codes(self, stream: np.ndarray, k: int) -> np.ndarray:
        """Each k neighbours as one number, the last token as the lowest digit."""
        code = np.zeros(len(stream) - k + 1, dtype=np.int64)
        for i in range(k):
            code = code * self.vocabulary + stream[i : len(stream) - k + 1 + i]
        return code


def _find(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 if the sorted keys do not hold it."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
