"""Few-shot accuracy: what n labelled samples of each class are enough for.

Draws are seeded by (seed, class), without replacement and nested: the 1-shot sample of a seed is
part of its 5-shot sample. The heads are those of Tian et al. (arXiv 2003.11539): logistic
regression with C = 1 on L2-normalised features, or the nearest class mean. Nothing is chosen: C is
fixed, every draw is scored on the whole test part, and all draws count. Of equally likely classes
the one with the smallest label is predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from ssl_train.errors import EvaluationError
from ssl_train.evaluate.accuracy import check_labelled, student_t, top1
from ssl_train.evaluate.logistic import logistic_path

Head = Literal["logistic", "centroid"]
HEADS: tuple[Head, ...] = ("logistic", "centroid")

C = 1.0


@dataclass(frozen=True)
class FewShot:
    """Top-1 over the seeds 0 … R-1; the interval is mean ± `interval`."""

    shots: int
    head: Head
    mean: float
    std: float  # between seeds, unbiased
    interval: float  # half width of the 95 % interval of the mean, by Student's t
    accuracies: list[float]  # one a seed
    indices: list[list[list[int]]]  # the training rows drawn: seed, class, shot


def fewshot(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    shots: int = 5,
    seeds: int = 10,
    head: Head = "logistic",
) -> FewShot:
    """Fit on `shots` of train (n, d) per class, score on all of test (m, d), `seeds` times.

    Raises EvaluationError when a class has fewer than `shots` samples and with fewer than two
    classes, ValueError with fewer than two seeds and on bad shapes.
    """
    check_labelled(train, train_labels, "train")
    check_labelled(test, test_labels, "test")
    if seeds < 2:
        raise ValueError(f"an interval needs two seeds or more, got {seeds}")
    if head not in HEADS:
        raise ValueError(f"head must be one of {HEADS}, got {head!r}")
    classes = torch.unique(train_labels)
    if len(classes) < 2:
        raise EvaluationError("few-shot needs two classes or more in the training data")
    x, queries = (F.normalize(part.double(), dim=1) for part in (train, test))
    accuracies, indices = [], []
    for seed in range(seeds):
        drawn = draw(train_labels, shots, seed)  # c n
        indices.append(drawn.tolist())
        support = x[drawn.flatten().to(x.device)]  # (c n) d
        logits = _logistic(support, queries, drawn) if head == "logistic" else _centroid(support, queries, drawn)
        accuracies.append(top1(classes[logits.argmax(dim=1)], test_labels))
    std = float(np.std(accuracies, ddof=1))
    half = student_t(seeds - 1) * std / math.sqrt(seeds)
    return FewShot(shots, head, float(np.mean(accuracies)), std, half, accuracies, indices)


def shots_for(labels: Tensor) -> int:
    """As many as the smallest class in `labels` (n,) has, at most 5."""
    return min(5, int(torch.unique(labels, return_counts=True)[1].min()))


def draw(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Rows (c, shots) of `shots` samples of each class in `labels` (n,), classes rising.

    The first n columns are the n-shot draw of the same seed. EvaluationError names a class that has
    too few samples.
    """
    rows = []
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().squeeze(1).cpu().numpy()
        if not 1 <= shots <= len(members):
            raise EvaluationError(
                f"class {label} has {len(members)} samples, {shots} shots cannot be drawn from it: ask for fewer --shots"
            )
        rows.append(np.random.default_rng((seed, label)).permutation(members)[:shots])
    return torch.from_numpy(np.stack(rows))


def _logistic(support: Tensor, queries: Tensor, drawn: Tensor) -> Tensor:
    classes, shots = drawn.shape
    targets = torch.arange(classes, device=support.device).repeat_interleave(shots)
    [(weight, bias)] = logistic_path(support, targets, classes, [C])
    return queries @ weight + bias  # m c


def _centroid(support: Tensor, queries: Tensor, drawn: Tensor) -> Tensor:
    centroids = reduce(support, "(c n) d -> c d", "mean", n=drawn.shape[1])
    return -torch.cdist(queries, centroids)  # m c
