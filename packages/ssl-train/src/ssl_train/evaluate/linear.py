"""The linear probe: how much of a label a linear map finds in frozen features.

Logistic regression on standardised features. Its strength C is chosen on held-out training data,
then it is fitted on all of them: the protocol of CLIP (Radford et al., arXiv 2103.00020, appendix
A.3) and DINOv2 (Oquab et al., arXiv 2304.07193), with two differences. They hold out one part and
compare accuracies. We compare losses, since the accuracy of a few held-out samples stays the same
over many C, after scaling the logits (see `_held_out`).
And we hold out several tenths in turn where one tenth is too few samples to tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_train.errors import EvaluationError
from ssl_train.evaluate.accuracy import check_labelled, macro_f1, mean_per_class, top1
from ssl_train.evaluate.logistic import path_along_axes, principal_axes

# DINOv2's range, two points a decade. C multiplies the sum of the losses, as in scikit-learn.
GRID = tuple(10 ** (-6 + i / 2) for i in range(23))
COARSE = tuple(10.0**power for power in range(-4, 3))
"""Where many probes are fitted: of each finding, and of each share of the labels."""
FOLDS = 10
ENOUGH = 1000  # held-out samples, at which no further fold is looked at
SCALES = tuple(10 ** (-2 + i / 4) for i in range(17))  # of logits whose deviation is 1
EQUAL = 1e-4  # nats: separable data gain less and less up to any C
RISEN = 0.05  # nats above the lowest held-out loss; chance is a plateau, and no rise
CHOOSING = 1e-5  # share of the objective that a fit may leave to gain, while C is chosen


@dataclass(frozen=True)
class LinearProbe:
    """Accuracy on the test data, and what was chosen on the training data."""

    top1: float
    mean_per_class: float
    macro_f1: float
    C: float
    at_grid_edge: bool
    held_out_top1: float  # of the chosen C, before the fit on everything
    held_out_loss: float  # the same, mean cross-entropy in nats at the best scale of the logits
    held_out: int  # samples that were held out, in all folds together


@dataclass(frozen=True)
class Fitted:
    """A linear map, and how its C was chosen; the other fields are those of `LinearProbe`."""

    logits: Tensor  # of the test data, (m, c)
    classes: Tensor  # (c,) labels
    C: float
    at_grid_edge: bool
    held_out_top1: float
    held_out_loss: float
    held_out: int


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    grid: Sequence[float] = GRID,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> LinearProbe:
    """Fit on train (n, d), labels (n,), and score on test (m, d). The test data decide nothing.

    C is the point of the rising `grid` with the smallest held-out loss. Every point is tried, up to
    three in a row at which the loss has risen by 0.05 nats. Of losses that differ by less than 1e-4
    nats the one of the best held-out accuracy wins, then the smallest C. Deterministic. Warns if
    the chosen C is the largest of the grid and the loss still falls there. Raises ValueError for
    bad shapes, and its subclass EvaluationError for fewer than two classes or no class with two
    samples. Training samples of one of `groups` (n,) are held out together.
    """
    check_labelled(test, test_labels, "test")
    found = fitted(train, train_labels, test, grid=grid, seed=seed, groups=groups)
    return scored(found, test_labels)


def scored(found: Fitted, test_labels: Tensor) -> LinearProbe:
    """The accuracies of a fit on test samples with these labels (m,)."""
    predicted = found.classes[found.logits.argmax(dim=1)]
    first, balanced, f1 = (score(predicted, test_labels) for score in (top1, mean_per_class, macro_f1))
    chosen = found.C, found.at_grid_edge, found.held_out_top1, found.held_out_loss, found.held_out
    return LinearProbe(first, balanced, f1, *chosen)


def fitted(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    grid: Sequence[float] = GRID,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Fitted:
    """The logits of `test` (m, d) by the map that `linear_probe` scores."""
    check_labelled(train, train_labels, "train")
    classes, targets = torch.unique(train_labels, return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError("a linear probe needs two classes or more in the training data")
    if not grid:
        raise ValueError("the grid of C is empty")
    train, test = standardise(train.double(), test.double())
    axes = principal_axes(train)  # d k
    train = train @ axes
    losses, hits, held_out = _held_out(train.float(), targets, len(classes), grid, folds(targets, seed, groups))
    best = int(hits.where(losses <= losses.min() + EQUAL, -1.0).argmax())  # the first of equals
    # The lower edge is none: below it, the direction of the weights no longer changes. The upper
    # edge is one while the loss still falls.
    falling = len(grid) > 1 and bool(losses[-2] > losses[-1] + EQUAL)
    at_edge = falling and best == len(grid) - 1 and hits[best].item() < 1
    if at_edge:
        what = f"the held-out loss is lowest at C = {grid[best]:.3g}, the end of the grid"
        warnings.warn(f"{what}: a larger C may do better", stacklevel=2)
    [(weight, bias)] = path_along_axes(train, targets, len(classes), [grid[best]])
    logits = test @ (axes @ weight) + bias
    return Fitted(logits, classes, grid[best], at_edge, hits[best].item(), losses[best].item(), held_out)


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both (·, d), shifted and scaled so that features of `train` have mean 0 and deviation 1.

    A feature that is constant up to rounding is only shifted.
    """
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * (mean.square() + std.square()).sqrt(), std, 1.0)
    return (train - mean) / std, (test - mean) / std


def folds(targets: Tensor, seed: int, groups: np.ndarray | None = None) -> Tensor:
    """(n,) int64: the fold, 0 to 9, in which each sample is held out, or -1 for never.

    Each fold holds about a tenth of every class. A class of two or more samples is never held out
    as a whole; the only sample of a class is always fitted. With `groups` (n,), about a tenth of
    the groups are held out together, except where a class would have none left to be fitted on.
    Raises EvaluationError if nothing can be held out.
    """
    if groups is not None:
        distinct, which = np.unique(groups, return_inverse=True)
        of_group = np.random.default_rng(seed).permutation(len(distinct)) % FOLDS
        fold = torch.from_numpy(of_group[which]).to(targets.device)
        for i in range(FOLDS):
            if len(torch.unique(targets[fold != i])) < len(torch.unique(targets)):
                fold[fold == i] = FOLDS  # never held out
        if (fold == FOLDS).all():
            raise EvaluationError("all samples of a class are of one group: C cannot be chosen on held-out ones")
        return fold
    fold, place = torch.full((len(targets),), -1), 0
    for label in torch.unique(targets).tolist():
        members = (targets == label).nonzero().squeeze(1).cpu().numpy()
        if len(members) > 1:
            order = np.random.default_rng((seed, label)).permutation(members)
            # Each class goes on where the one before it stopped, so that small classes do not all
            # fall into the first folds.
            fold[order] = (torch.arange(len(order)) + place) % FOLDS
            place += len(order)
    if (fold < 0).all():
        raise EvaluationError("no class has two training samples: C cannot be chosen on held-out ones")
    return fold.to(targets.device)


def _held_out(
    x: Tensor, targets: Tensor, classes: int, grid: Sequence[float], fold: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Loss and top-1 of each C of `grid` (g,) on samples that were not fitted, and how many these
    were.

    The loss is that of the best scale of the logits: with few labels they are too sure of
    themselves, and would seem worse than saying nothing where they still rank the classes well.
    """
    end = len(grid)
    losses, hits, count = torch.zeros(len(grid), len(SCALES)).double(), torch.zeros(len(grid)).double(), 0
    for i in range(FOLDS):
        held = fold == i
        if count >= ENOUGH or not held.any():
            continue
        path = path_along_axes(x[~held], targets[~held], classes, grid[:end], tolerance=CHOOSING)
        lowest, risen = torch.inf, 0
        for j, (weight, bias) in enumerate(path):
            logits = x[held] @ weight + bias
            logits -= logits.mean(dim=1, keepdim=True)
            logits /= logits.std(correction=0).clamp(min=1e-30)
            here = torch.tensor([F.cross_entropy(scale * logits, targets[held]).item() for scale in SCALES])
            losses[j] += here.double() * len(logits)
            hits[j] += (logits.argmax(dim=1) == targets[held]).sum().item()
            # Where the loss has risen for good, a larger C only overfits more, and takes long.
            risen = risen + 1 if here.min().item() > lowest + RISEN else 0
            lowest = min(lowest, here.min().item())
            if risen == 3:
                end = j + 1
                break
        count += int(held.sum())
    losses[end:] = torch.inf
    return losses.amin(dim=1) / count, hits / count, count
