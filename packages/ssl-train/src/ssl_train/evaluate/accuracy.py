"""Accuracies of predicted labels: top-1 and balanced, and the interval of a share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def top1(predicted: Tensor, labels: Tensor) -> float:
    """Share of samples whose predicted label (n,) is the true one (n,)."""
    return _correct(predicted, labels).double().mean().item()


def mean_per_class(predicted: Tensor, labels: Tensor) -> float:
    """Balanced accuracy: top-1 within each class of `labels` (n,), averaged over those classes."""
    correct = _correct(predicted, labels).double()
    _, which, count = torch.unique(labels, return_inverse=True, return_counts=True)
    hits = correct.new_zeros(len(count)).index_add_(0, which, correct)
    return (hits / count).mean().item()


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """2 hits / (predicted + true) of each class in `labels` (n,) or `predicted` (n,), averaged."""
    correct = _correct(predicted, labels)
    classes, which = torch.unique(torch.cat([labels, predicted]), return_inverse=True)
    both = torch.bincount(which, minlength=len(classes))
    hits = torch.bincount(which[: len(labels)][correct], minlength=len(classes))
    return (2 * hits.double() / both).mean().item()


def wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n > 0 samples (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered(correct: Tensor, groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `correct` (n,), whose samples of one group are not independent:
    Wilson's, of as many samples as would have the same standard error, and of no more than n."""
    hits = correct.double().cpu().numpy()
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], hits - hits.mean())
    variance = float(sums @ sums) / len(hits) ** 2
    share = float(hits.mean())
    return wilson(share, min(len(hits), share * (1 - share) / variance) if variance else len(sums))


def interval_of(row: Mapping[str, Any], key: str, tested: int) -> tuple[float, float] | None:
    """The interval of a figure of a row of evaluation.json: its own, else Wilson's of `tested`
    samples; None where these are not known."""
    own = row.get("intervals", {}).get(key)
    return tuple(own) if own else wilson(row[key], tested) if tested else None


@lru_cache(maxsize=1024)
def student_t(freedom: int, level: float = 0.95) -> float:
    """The t with P(|T| <= t) = level, for `freedom` >= 1 degrees of freedom: 2.262 for 9.

    By bisection on the closed form for whole degrees (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2  # the angle atan(t / sqrt(freedom))
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _central_mass(angle: float, freedom: int) -> float:
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * i / (i + 1)
    mass = math.sin(angle) * total
    return 2 / math.pi * (angle + mass) if odd else mass


def _correct(predicted: Tensor, labels: Tensor) -> Tensor:
    if predicted.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        what = "predictions and labels must be two (n,) tensors with n > 0, got"
        raise ValueError(f"{what} {tuple(predicted.shape)} and {tuple(labels.shape)}")
    return predicted == labels


def check_labelled(x: Tensor, labels: Tensor, what: str) -> None:
    """Raises ValueError unless `x` is (n, d) finite features with n > 0 labels, none negative."""
    if x.ndim != 2 or labels.shape != x.shape[:1] or len(x) == 0:
        reason = f"{what}: features must be (n, d) and labels (n,) with n > 0, got"
        raise ValueError(f"{reason} {tuple(x.shape)} and {tuple(labels.shape)}")
    if (labels < 0).any():
        raise ValueError(f"{what}: {int((labels < 0).sum())} samples have no label, leave them out")
    check_finite(x, what)


def check_finite(x: Tensor, what: str = "features") -> None:
    """Raises ValueError if a row of `x` (n, d) holds NaN or infinity."""
    # amax and amin pass NaN on, and take a tenth of the time of testing every number
    finite = torch.isfinite(x.amax(dim=1)) & torch.isfinite(x.amin(dim=1))
    bad = int((~finite).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {len(x)} rows hold NaN or infinity, the encoder is broken")
