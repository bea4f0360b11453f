from __future__ import annotations

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from ssl_train.evaluate.fewshot import HEADS, draw, fewshot, shots_for, student_t


def blobs(n: int, d: int = 8, classes: int = 4, spread: float = 1.0, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, d, generator=g), labels


def test_draws_are_nested_balanced_and_without_replacement():
    labels = torch.tensor([0, 1, 2] * 20)[torch.randperm(60)]
    for seed in range(5):
        most = draw(labels, 20, seed)
        assert most.flatten().unique().numel() == 60
        for shots in (1, 2, 5, 10):
            few = draw(labels, shots, seed)
            assert torch.equal(few, most[:, :shots])
            assert torch.equal(labels[few], torch.arange(3)[:, None].expand(3, shots))


def test_seeds_draw_differently_and_repeatably():
    labels = torch.arange(200) % 4
    draws = [draw(labels, 5, seed) for seed in range(10)]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 10
    assert all(torch.equal(d, draw(labels, 5, seed)) for seed, d in enumerate(draws))


def test_a_draw_depends_on_its_own_class_only():
    labels = torch.tensor([0, 1, 2] * 20)
    without_one = torch.where(labels == 1, 5, labels)
    assert torch.equal(draw(labels, 4, 3)[[0, 2]], draw(without_one, 4, 3)[[0, 1]])
    first, second = draw(labels, 4, 3)[:2]
    assert not torch.equal(first + 1, second)  # classes do not share one permutation


def test_a_class_with_too_few_samples_is_an_error():
    x, labels = blobs(40)
    labels[labels == 2] = 0
    labels[:3] = 2
    with pytest.raises(ValueError, match="class 2 has 3 samples, 5 shots"):
        fewshot(x, labels, x, labels)
    assert fewshot(x, labels, x, labels, shots=3).shots == 3
    with pytest.raises(ValueError, match="0 shots"):
        draw(labels, 0, 0)


def test_student_t_is_the_table():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 10: 2.2281, 29: 2.0452}
    for freedom, value in table.items():
        assert student_t(freedom) == pytest.approx(value, abs=5e-5)
    assert student_t(9, 0.99) == pytest.approx(3.2498, abs=5e-5)
    assert student_t(10_000) == pytest.approx(1.96, abs=5e-4)


def test_student_t_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in range(1, 60):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize("head", HEADS)
def test_mean_spread_and_interval_are_those_of_the_seeds(head):
    x, labels = blobs(200, spread=2.0)
    test, truth = blobs(100, spread=2.0, seed=1)
    got = fewshot(x, labels, test, truth, shots=3, seeds=6, head=head)
    assert len(got.accuracies) == 6 and len(set(got.accuracies)) > 1
    assert got.mean == pytest.approx(statistics.mean(got.accuracies))
    assert got.std == pytest.approx(statistics.stdev(got.accuracies))
    assert got.interval == pytest.approx(2.5706 * got.std / math.sqrt(6), rel=1e-4)
    assert got == fewshot(x, labels, test, truth, shots=3, seeds=6, head=head)


def test_the_centroid_head_is_the_nearest_class_mean():
    x, labels = blobs(80, spread=2.0)
    test, truth = blobs(50, spread=2.0, seed=1)
    got = fewshot(x, labels, test, truth, shots=2, seeds=4, head="centroid")
    z, queries = F.normalize(x.double(), dim=1), F.normalize(test.double(), dim=1)
    for seed, rows in enumerate(got.indices):
        means = [sum(z[i] for i in members) / len(members) for members in rows]
        right = sum(
            min(range(4), key=lambda c: (q - means[c]).norm().item()) == y
            for q, y in zip(queries, truth.tolist(), strict=True)
        )
        assert got.accuracies[seed] == pytest.approx(right / 50)


def test_the_logistic_head_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = blobs(80, d=30, spread=2.0)
    test, truth = blobs(50, d=30, spread=2.0, seed=1)
    got = fewshot(x, labels, test, truth, shots=3, seeds=4)
    z, queries = F.normalize(x.double(), dim=1), F.normalize(test.double(), dim=1)
    for seed, rows in enumerate(got.indices):
        support = [i for members in rows for i in members]
        theirs = linear_model.LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
        theirs.fit(z[support].numpy(), labels[support].numpy())
        score = theirs.score(queries.numpy(), truth.numpy())
        assert got.accuracies[seed] == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_clear_classes_need_one_shot(head):
    x, labels = blobs(200, d=32, spread=0.05)
    names = torch.tensor([11, 3, 40, 8])
    got = fewshot(x, names[labels], x, names[labels], shots=1, head=head)
    assert got.mean == 1.0 and got.interval == 0.0
    assert [[labels[i].item() for i in row] for row in got.indices[0]] == [[1], [3], [0], [2]]


def test_bad_input_is_refused():
    x, labels = blobs(40)
    with pytest.raises(ValueError, match="two seeds"):
        fewshot(x, labels, x, labels, seeds=1)
    with pytest.raises(ValueError, match="two classes"):
        fewshot(x, torch.zeros_like(labels), x, labels)
    with pytest.raises(ValueError, match="head must be"):
        fewshot(x, labels, x, labels, head="svm")
    with pytest.raises(ValueError, match="train: 40 samples have no label"):
        fewshot(x, -torch.ones_like(labels), x, labels)


def test_every_sample_is_drawn_as_often_as_the_others_of_its_class():
    labels = torch.tensor([0] * 10 + [1] * 40)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    seeds, shots = 2000, 3
    counts = torch.bincount(torch.cat([draw(labels, shots, seed).flatten() for seed in range(seeds)]), minlength=50)
    for label, members in ((0, 10), (1, 40)):
        share = shots / members
        spread = math.sqrt(seeds * share * (1 - share))
        assert (counts[labels == label] - seeds * share).abs().max() < 4.5 * spread


def test_equal_scores_go_to_the_smallest_label_in_both_heads():
    labels = torch.arange(40) % 4 + 3
    same = torch.ones(40, 5)
    for head in HEADS:
        assert fewshot(same, labels, same, labels, shots=2, head=head).mean == 0.25


def test_by_default_the_shots_are_those_of_the_smallest_class_and_at_most_five():
    assert shots_for(torch.tensor([0, 0, 0, 7, 7])) == 2
    assert shots_for(torch.arange(100) % 3) == 5
