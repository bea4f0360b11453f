"""Findings of which a picture may have several, and rankings of classes: AUROC and average
precision of each, and their means.

Labels are (n, c) of 0, 1 and -1, which is not known and counts nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_train.errors import EvaluationError
from ssl_train.evaluate.knn import KS, TEMPERATURE, Index
from ssl_train.evaluate.linear import COARSE, fitted
from ssl_train.evaluate.ranking import Parts, auroc, average_precision, interval

SCORES = {"auroc": auroc, "average_precision": average_precision}


def rank(scores: Tensor, truth: Tensor, names: Sequence[str], groups: np.ndarray | None = None) -> dict[str, Any]:
    """How well `scores` (n, c) rank `truth` (n, c): each score of SCORES as {"mean", "interval"}
    over the columns, and under "each" for every name with the counts of positives and negatives.

    A figure that needs a kind of sample which is not there is None, and no part of the mean.
    """
    score, true = scores.double().cpu().numpy(), truth.cpu().numpy()
    counts = [[int((column == value).sum()) for value in (1, 0)] for column in true.T]
    each: dict[str, Any] = {
        name: {"positive": positive, "negative": negative}
        for name, (positive, negative) in zip(names, counts, strict=True)
    }
    result: dict[str, Any] = {"each": each}
    for key, measure in SCORES.items():
        found: dict[str, Parts] = {}
        for name, column, target in zip(names, score.T, true.T, strict=True):
            value, parts = measure(column, target)
            if min(each[name]["positive"], each[name]["negative"]):
                found[name] = value, parts
        fewest = {name: min(each[name]["positive"], each[name]["negative"]) for name in found}
        for name in names:
            parts = [found[name]] if name in found else []
            each[name][key] = _summary(parts, fewest.get(name, 0), groups)
        result[key] = _summary(list(found.values()), max(fewest.values(), default=0), groups)
    return result


def _summary(found: list[Parts], fewest: int, groups: np.ndarray | None) -> dict[str, Any]:
    mean = float(np.mean([value for value, _ in found])) if found else None
    ends = interval(found, fewest, groups)
    return {"mean": mean, "interval": None if math.isnan(ends[0]) else list(ends)}


def linear_scores(
    train: Tensor, labels: Tensor, test: Tensor, *, seed: int = 0, groups: np.ndarray | None = None
) -> tuple[Tensor, list[float | None]]:
    """Logits (m, c) of `test` (m, d), and the C of each finding: the linear probe of
    `ssl_train.evaluate.linear` for each of `labels` (n, c) alone.

    A finding of which the training data have no positive, or no negative, scores 0 everywhere.
    """
    columns, chosen = [], []
    for column in labels.T:
        known = column >= 0
        own = None if groups is None else groups[known.cpu().numpy()]
        try:
            found = fitted(train[known], column[known], test, grid=COARSE, seed=seed, groups=own)
            columns.append(found.logits[:, 1] - found.logits[:, 0])
            chosen.append(found.C)
        except EvaluationError:
            columns.append(torch.zeros(len(test), dtype=torch.float64, device=test.device))
            chosen.append(None)
    return torch.stack(columns, dim=1), chosen


def knn_scores(
    bank: Tensor, labels: Tensor, queries: Tensor, *, ks: Sequence[int] = KS, temperature: float = TEMPERATURE
) -> dict[int, Tensor]:
    """The weighted share (q, c) of the k nearest of `bank` (n, d) that have each finding, for each
    k of `ks`, of those of which it is known; where it is of none, that of the whole bank.

    The weights are those of `ssl_train.evaluate.knn`. The keys are min(k, n).
    """
    known, has = (labels >= 0).double(), (labels == 1).double()
    prior = has.sum(0) / known.sum(0).clamp(min=1)  # c
    index, ks = Index(F.normalize(bank.float(), dim=1)), sorted({min(k, len(bank)) for k in ks})
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    for some in F.normalize(queries.float(), dim=1).split(256):
        similarity, where = index.nearest(some, ks[-1])
        weight = torch.exp((similarity - similarity[:, :1]) / temperature).double()  # q k
        for k in ks:
            share, total = (torch.einsum("qk,qkc->qc", weight[:, :k], part[where[:, :k]]) for part in (has, known))
            parts[k].append(torch.where(total > 0, share / total.clamp(min=1e-300), prior))
    return {k: torch.cat(found) for k, found in parts.items()}
