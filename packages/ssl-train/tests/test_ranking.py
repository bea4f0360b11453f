from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl_train.evaluate.accuracy import clustered, macro_f1, wilson
from ssl_train.evaluate.findings import SCORES, knn_scores, linear_scores, rank
from ssl_train.evaluate.ranking import auroc, average_precision, interval

metrics = pytest.importorskip("sklearn.metrics")


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, every other time with many ties, and labels of both kinds."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 80))
    scores = rng.integers(0, 9, n) / 3 if seed % 2 else rng.normal(size=n)
    return scores, np.concatenate([[0, 1], rng.integers(0, 2, n - 2)])


@pytest.mark.parametrize("seed", range(40))
def test_scores_are_scikit_learns(seed):
    scores, truth = drawn(seed)
    assert auroc(scores, truth)[0] == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    assert average_precision(scores, truth)[0] == pytest.approx(
        metrics.average_precision_score(truth, scores), abs=1e-12
    )
    predicted = np.random.default_rng(seed).integers(0, 4, len(truth))
    ours = macro_f1(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert ours == pytest.approx(metrics.f1_score(truth, predicted, average="macro", zero_division=0), abs=1e-12)


def test_parts_of_auroc_give_delongs_variance():
    scores, truth = drawn(7)
    x, y = scores[truth == 1], scores[truth == 0]
    below = (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)  # the kernel of the paper
    area = below.mean()
    m, n = below.shape
    v10, v01 = below.mean(1), below.mean(0)
    variance = ((v10 - area) ** 2).sum() / (m - 1) / m + ((v01 - area) ** 2).sum() / (n - 1) / n
    assert (auroc(scores, truth)[1] ** 2).sum() == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_parts_of_average_precision_are_its_derivatives_by_the_weights(seed):
    scores, truth = drawn(seed)
    parts, step = average_precision(scores, truth)[1], 1e-5
    for i in range(len(truth)):
        ends = []
        for sign in (1, -1):
            weight = np.ones(len(truth))
            weight[i] += sign * step
            ends.append(metrics.average_precision_score(truth, scores, sample_weight=weight))
        assert parts[i] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


def covered(draws: int, seed: int = 0) -> dict[str, float]:
    """The share of simulated data sets whose interval holds the true value: normal scores, 200
    samples, a fifth of them positive and higher by 1.2."""
    rng, shift, share = np.random.default_rng(seed), 1.2, 0.2
    at = np.linspace(-8, 10, 20_001)
    above = [np.array([0.5 * math.erfc((t - by) / 2**0.5) for t in at]) for by in (shift, 0.0)]
    density = np.exp(-((at - shift) ** 2) / 2) / math.sqrt(2 * math.pi) * (at[1] - at[0])
    precision = share * above[0] / (share * above[0] + (1 - share) * above[1])
    true = {"auroc": 0.5 * math.erfc(-shift / 2), "average_precision": float(precision @ density)}
    hits = dict.fromkeys(true, 0)
    for _ in range(draws):
        truth = (rng.random(200) < share).astype(int)
        scores = rng.normal(size=200) + shift * truth
        for name, measure in SCORES.items():
            low, high = interval([measure(scores, truth)], int(truth.sum()))
            hits[name] += low <= true[name] <= high
    return {name: found / draws for name, found in hits.items()}


def test_intervals_cover_the_true_value_about_as_often_as_they_say():
    assert all(0.92 <= share <= 0.98 for share in covered(500).values()), "4 deviations are 0.039"


def test_intervals_count_a_group_once():
    scores, truth = drawn(7)
    found = auroc(scores, truth)
    four = auroc(np.repeat(scores, 4), np.repeat(truth, 4))
    fewest = 10
    alone, copied = interval([found], fewest), interval([four], fewest)
    together = interval([four], fewest, np.repeat(np.arange(len(truth)), 4))
    assert copied[1] - copied[0] < 0.6 * (alone[1] - alone[0]), "copies look like knowledge"
    assert together == pytest.approx(alone, abs=0.02)
    right = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0]).bool()
    assert clustered(right, np.arange(8)) == pytest.approx(wilson(5 / 8, 8))
    assert clustered(right.repeat_interleave(9), np.arange(8).repeat(9)) == pytest.approx(wilson(5 / 8, 8))


def test_perfect_scores_have_an_interval_below_one():
    truth = np.array([0, 0, 0, 1, 1, 1])
    assert interval([auroc(truth, truth)], 3) == wilson(1.0, 3)


def test_a_finding_without_a_positive_is_left_out_of_the_mean():
    truth = torch.tensor([[0, 1], [0, 0], [0, 1], [0, -1]])
    found = rank(torch.tensor([[0.0, 3], [1, 1], [2, 2], [3, 9]]), truth, ["none", "some"])
    assert found["each"]["none"]["auroc"] == {"mean": None, "interval": None}
    assert found["auroc"]["mean"] == 1.0 and found["each"]["some"]["positive"] == 2, "-1 counts nowhere"


def test_findings_that_are_not_known_neither_vote_nor_are_fitted():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 2, (60, 2)))
    x = torch.from_numpy(rng.normal(size=(60, 6)).astype(np.float32))
    x[:, :2] += 2 * y
    hidden = y.clone()
    hidden[30:, 1] = -1
    logits, chosen = linear_scores(x[:40], hidden[:40], x[40:])
    again, _ = linear_scores(x[:30], y[:30], x[40:])
    assert torch.equal(logits[:, 1], again[:, 1]) and None not in chosen
    share = knn_scores(x[:40], hidden[:40], x[40:], ks=[5, 500])
    assert list(share) == [5, 40] and rank(share[5], y[40:], ["a", "b"])["auroc"]["mean"] > 0.7
    none = knn_scores(x[:2], torch.tensor([[-1], [-1]]), x[:3], ks=[1])[1]
    assert torch.equal(none, torch.zeros(3, 1).double())


def test_the_k_nearest_are_weighted_as_by_hand():
    bank = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]])
    labels = torch.tensor([[1], [0], [0]])
    share = knn_scores(bank, labels, torch.tensor([[2.0, 0]]), ks=[2], temperature=0.5)[2]
    assert share.item() == pytest.approx(1 / (1 + math.exp(-0.2 / 0.5)), abs=1e-6)
