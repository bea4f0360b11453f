"""The linear probe: how much of a label a linear map finds in frozen features.

Logistic regression on standardised features, its strength C chosen on a held-out part of the
training data, then fitted on all of it: the protocol of DINOv2 (Oquab et al., arXiv 2304.07193) and
CLIP (Radford et al., arXiv 2103.00020, appendix A.3). We hold out a tenth of every class, where
DINOv2 draws a tenth of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.errors import EvaluationError
from ssl_train.evaluate.accuracy import check_labelled, mean_per_class, top1
from ssl_train.evaluate.logistic import logistic_path

# DINOv2's range, two points a decade. C multiplies the sum of the losses, as in scikit-learn.
GRID = tuple(10 ** (-6 + i / 2) for i in range(23))
HELD_OUT = 0.1
PATIENCE = 4  # grid points, two decades


@dataclass(frozen=True)
class LinearProbe:
    """Accuracy on the test data, and what was chosen on the training data."""

    top1: float
    mean_per_class: float
    C: float
    at_grid_edge: bool
    held_out_top1: float  # of the chosen C, before the fit on everything


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> LinearProbe:
    """Fit on train (n, d), labels (n,), and score on test (m, d). The test data decide nothing.

    The search goes up the rising `grid` and ends two decades after the best held-out accuracy;
    equal accuracies are told apart by the held-out loss. Deterministic. Warns when the chosen C is
    at the edge of the grid. ValueError on bad shapes; EvaluationError, which is one, on fewer than
    two classes, or no class with two samples.
    """
    check_labelled(train, train_labels, "train")
    check_labelled(test, test_labels, "test")
    classes, targets = torch.unique(train_labels, return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError("a linear probe needs two classes or more in the training data")
    train, test = standardise(train.double(), test.double())
    held = hold_out(targets, seed=seed)
    strength, accuracy, start = _choose(train.float(), targets, held, len(classes), grid)
    at_edge = len(grid) > 1 and strength in (grid[0], grid[-1])
    if at_edge:
        warnings.warn(
            f"the best C = {strength:.3g} is at the edge of the grid: a wider one may do better", stacklevel=2
        )
    [(weight, bias)] = logistic_path(train, targets, len(classes), [strength], start=start)
    predicted = classes[(test @ weight + bias).argmax(dim=1)]
    return LinearProbe(
        top1(predicted, test_labels), mean_per_class(predicted, test_labels), strength, at_edge, accuracy
    )


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both (·, d), shifted and scaled so that features of `train` have mean 0 and deviation 1.

    A feature that is constant up to rounding is only shifted.
    """
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * (mean.square() + std.square()).sqrt(), std, 1.0)
    return (train - mean) / std, (test - mean) / std


def hold_out(targets: Tensor, *, seed: int) -> Tensor:
    """(n,) bool: a tenth of each class, at least one of two. ValueError when that is none."""
    held = torch.zeros(len(targets), dtype=torch.bool)
    for label in torch.unique(targets).tolist():
        members = (targets == label).nonzero().squeeze(1).cpu().numpy()
        if len(members) > 1:
            order = np.random.default_rng((seed, label)).permutation(members)
            held[order[: max(1, round(HELD_OUT * len(members)))]] = True
    if not held.any():
        raise EvaluationError("no class has two training samples: C cannot be chosen on held-out ones")
    return held.to(targets.device)


def _choose(
    x: Tensor, targets: Tensor, held: Tensor, classes: int, grid: Sequence[float]
) -> tuple[float, float, tuple[Tensor, Tensor]]:
    """C of the best held-out accuracy, that accuracy, and the weights that had it."""
    best, since = (-1.0, 0.0), 0
    chosen: tuple[float, float, tuple[Tensor, Tensor]] | None = None
    path = logistic_path(x[~held], targets[~held], classes, grid)
    for strength, (weight, bias) in zip(grid, path, strict=True):
        logits = x[held] @ weight + bias
        accuracy = top1(logits.argmax(dim=1), targets[held])
        score = (accuracy, -F.cross_entropy(logits, targets[held]).item())
        since = 0 if accuracy > best[0] else since + 1
        if score > best:
            best, chosen = score, (strength, accuracy, (weight, bias))
        if since == PATIENCE:
            break
    if chosen is None:
        raise ValueError("the grid of C is empty")
    return chosen
