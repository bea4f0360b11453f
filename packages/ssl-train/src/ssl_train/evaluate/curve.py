"""The linear probe by the share of the labels that it may use: 1, 5, 10 and 100 %.

Draws are seeded and nested: what a seed takes at 1 % is part of what it takes at 10 %. Of classes,
each gives its share, at least one sample; of groups, such as patients, whole ones are drawn, and of
findings samples. At 100 % there is nothing to draw.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ssl_train.errors import EvaluationError
from ssl_train.evaluate.accuracy import student_t

SHARES = (0.01, 0.05, 0.1, 1.0)
DRAWS = 3


def drawn(labels: Tensor, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Rows, rising, of a share of the samples with `labels` (n,) or (n, c) and perhaps `groups`
    (n,)."""
    order = np.random.default_rng(seed)
    if groups is not None:
        _, which = np.unique(groups, return_inverse=True)
        place = order.permutation(which.max() + 1)[which]  # of each sample's group
        sizes = np.cumsum(np.bincount(place))
        last = np.searchsorted(sizes, share * len(labels) - 1e-9)
        return np.flatnonzero(place <= last)
    kinds = labels.cpu().numpy() if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    chosen = []
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        chosen.append(order.permutation(members)[: math.ceil(share * len(members) - 1e-9)])
    return np.sort(np.concatenate(chosen))


def curve(
    score: Callable[[np.ndarray], float],
    labels: Tensor,
    groups: np.ndarray | None = None,
    *,
    whole: float | None = None,
) -> list[dict[str, Any]]:
    """For each of SHARES the mean of `score(rows)` over DRAWS draws, and half the width of its 95 %
    interval by Student's t. "mean" is None for a share that is too small to fit anything. `whole`
    is the score of all labels, where it is known.
    """
    points = []
    for share in SHARES:
        rows = [drawn(labels, share, seed, groups) for seed in range(DRAWS if share < 1 else 1)]
        point: dict[str, Any] = {"share": share, "labels": [len(row) for row in rows], "mean": None, "interval": None}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a C at the end of the grid is usual for a few samples
                values = [whole] if share == 1 and whole is not None else [score(row) for row in rows]
        except EvaluationError as error:
            points.append({**point, "why": str(error)})
            continue
        half = student_t(DRAWS - 1) * float(np.std(values, ddof=1)) / math.sqrt(DRAWS) if share < 1 else None
        points.append({**point, "mean": float(np.mean(values)), "interval": half, "values": values})
    return points
