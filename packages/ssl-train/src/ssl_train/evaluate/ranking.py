"""How well scores rank: AUROC and average precision, with 95 % intervals.

AUROC is the probability that a positive sample scores above a negative one, ties counting half.
Its interval is DeLong's (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988): every sample has a
part in the estimate, and the variance is the sum of the squares of these parts. The interval of an
average precision is made of such parts too, its derivatives by the weights of the samples (the
infinitesimal jackknife). Samples of one group, such as the pictures of a patient, are not
independent, so their parts are summed first (Obuchowski, Biometrics 53, 1997). Of a mean over
several findings, the parts of a sample are averaged. Intervals are made on the logit scale, so they
stay within 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ssl_train.evaluate.accuracy import student_t, wilson

Parts = tuple[float, np.ndarray]
"""An estimate, and the part of each sample in it, (n,)."""


def auroc(scores: np.ndarray, truth: np.ndarray) -> Parts:
    """Area under the ROC curve of `scores` (n,) for `truth` (n,), which holds 0 and 1; -1 is not
    known. NaN without a positive or without a negative."""
    parts = np.zeros(len(truth))
    sides = [scores[truth == value] for value in (0, 1)]
    if not all(map(len, sides)):
        return math.nan, parts
    # of each positive the share of the negatives below it; of each negative that of positives above
    placed = 1 - _share_below(sides[0], sides[1]), _share_below(sides[1], sides[0])
    area = float(placed[1].mean())
    for value in (0, 1):
        count = len(sides[value])
        parts[truth == value] = (placed[value] - area) / math.sqrt(count * max(count - 1, 1))
    return area, parts


def average_precision(scores: np.ndarray, truth: np.ndarray) -> Parts:
    """Precision at the score of each positive, averaged, of `scores` and `truth` as `auroc` has
    them. NaN without a positive."""
    parts, positive = np.zeros(len(truth)), truth == 1
    known, own = np.flatnonzero(truth >= 0), scores[positive]
    if not len(own):
        return math.nan, parts
    above = [len(side) * (1 - _share_below(own, side, "left")) for side in (own, scores[truth == 0])]
    total = above[0] + above[1]
    precision = above[0] / total
    mean = float(precision.mean())
    # One more sample at s changes the precision at every score up to s.
    order = np.argsort(own)
    up_to = np.searchsorted(own[order], scores[known], "right")
    for value, change in ((1, above[1] / total**2), (0, -above[0] / total**2)):
        summed = np.append(0.0, np.cumsum(change[order]))[up_to] / len(own)
        parts[known] = np.where(truth[known] == value, summed, parts[known])
    parts[positive] += (precision - mean) / len(own)
    return mean, parts


def interval(found: Sequence[Parts], fewest: int, groups: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of the mean of estimates on the same samples, by Student's t of `fewest` - 1,
    where `fewest` are the samples of the rarer kind. NaN if there is no estimate, or `fewest` is 1.

    `groups` (n,) are equal for samples that belong together. Where no spread is seen, as at an
    AUROC of 1, it is that of a share of `fewest` samples.
    """
    mean, parts = (np.mean(part, axis=0) for part in zip(*found, strict=True)) if found else (math.nan, np.zeros(0))
    if math.isnan(mean) or fewest < 2:
        return math.nan, math.nan
    if groups is not None:
        parts = np.bincount(np.unique(groups, return_inverse=True)[1], parts)
    error = float(np.linalg.norm(parts))
    if not error or mean <= 0 or mean >= 1:
        return wilson(float(mean), fewest)
    middle, half = math.log(mean / (1 - mean)), student_t(min(fewest, 1001) - 1) * error / (mean * (1 - mean))
    return 1 / (1 + math.exp(half - middle)), 1 / (1 + math.exp(-half - middle))


def _share_below(values: np.ndarray, others: np.ndarray, *sides: str) -> np.ndarray:
    """The share of `others` below each of `values`; equal ones count half, or not at all by
    `sides` ("left",)."""
    ordered = np.sort(others)
    counts = [np.searchsorted(ordered, values, side) for side in sides or ("left", "right")]  # type: ignore[call-overload]
    return np.mean(counts, axis=0) / max(len(others), 1)
