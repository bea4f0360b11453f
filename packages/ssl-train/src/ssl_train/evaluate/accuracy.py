"""Accuracies of predicted labels: top-1 and balanced, and the interval of a share."""

from __future__ import annotations

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


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n > 0 samples (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


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
