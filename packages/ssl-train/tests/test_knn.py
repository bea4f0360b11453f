from __future__ import annotations

import math

import pytest
import torch

from ssl_train.evaluate import knn as module
from ssl_train.evaluate.accuracy import mean_per_class, top1
from ssl_train.evaluate.knn import knn, leave_one_out


def blobs(n: int, d: int = 5, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=g)
    return centres[labels] + torch.randn(n, d, generator=g), labels


def by_hand(bank, labels, query, k, temperature, skip=None):
    """The vote of one query in plain Python, from the definition."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.hypot(*a) / math.hypot(*b)

    pairs = [(cosine(query, row), y) for row, y in zip(bank, labels, strict=True)]
    if skip is not None:
        del pairs[skip]
    scores: dict[int, float] = {}
    for similarity, label in sorted(pairs, key=lambda pair: -pair[0])[:k]:
        scores[label] = scores.get(label, 0.0) + math.exp(similarity / temperature)
    return min(scores, key=lambda label: (-scores[label], label))


@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
def test_predictions_are_those_of_plain_python(temperature):
    bank, labels = blobs(60)
    queries, _ = blobs(40, seed=1)
    got = knn(bank, labels, queries, ks=(1, 3, 10, 50), temperature=temperature)
    assert list(got) == [1, 3, 10, 50]
    rows = bank.double().tolist()
    for k, predicted in got.items():
        expected = [by_hand(rows, labels.tolist(), q, k, temperature) for q in queries.double().tolist()]
        assert predicted.tolist() == expected


def test_leave_one_out_is_that_of_plain_python():
    x, labels = blobs(50, classes=4)
    rows, y = x.double().tolist(), labels.tolist()
    for k in (1, 5, 20):
        right = sum(by_hand(rows, y, rows[i], k, 0.07, skip=i) == y[i] for i in range(50))
        assert leave_one_out(x, labels, k=k) == pytest.approx(right / 50, abs=1e-12)


def test_the_nearest_of_the_bank_itself_is_always_right():
    bank, labels = blobs(300)
    assert top1(knn(bank, labels, bank, ks=(1,))[1], labels) == 1.0


def test_weights_let_one_near_neighbour_beat_two_far_ones():
    bank = torch.tensor([[1.0, 0.1], [1.0, 1.0], [1.0, -1.0]])
    labels, query = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]])
    assert knn(bank, labels, query, ks=(3,))[3].item() == 1
    unweighted = knn(bank, labels, query, ks=(3,), temperature=1e6)
    assert unweighted[3].item() == 0


def test_order_of_the_bank_does_not_matter():
    bank, labels = blobs(200)
    queries, _ = blobs(100, seed=1)
    first = knn(bank, labels, queries)
    for seed in range(3):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        again = knn(bank[order], labels[order], queries)
        assert all(torch.equal(first[k], again[k]) for k in first)


def test_length_of_features_does_not_matter():
    bank, labels = blobs(80)
    queries, _ = blobs(40, seed=1)
    scale = torch.rand(80, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    first, again = knn(bank, labels, queries), knn(bank * scale, labels, queries * 7)
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_equal_scores_go_to_the_smallest_label():
    bank = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
    query = torch.tensor([[1.0, 0.0]])
    assert knn(bank, torch.tensor([7, 3, 3, 7]), query, ks=(4,))[4].item() == 3
    assert knn(bank, torch.tensor([3, 7, 7, 3]), query, ks=(4,))[4].item() == 3


def test_samples_that_are_equally_near_share_the_last_places(monkeypatch):
    """Seventy copies of a blank picture, mostly of class 2, and one nearer sample of class 0."""
    copies = torch.tensor([1.0, 0.0]).expand(70, 2)
    bank = torch.cat([copies, torch.tensor([[0.6, 0.8]]), torch.randn(30, 2) * 0.01 - 1])
    labels = torch.tensor([0] * 15 + [1] * 20 + [2] * 35 + [0] + [1] * 30)
    query = torch.tensor([[1.0, 0.02], [1.0, 0.0]])
    for seed in range(4):  # whatever the order of the bank, and however it is cut
        order = torch.randperm(101, generator=torch.Generator().manual_seed(seed))
        monkeypatch.setattr(module, "BANK", [65_536, 17][seed % 2])
        got = knn(bank[order], labels[order], query, ks=(1, 5, 20, 60))
        assert all(predicted.tolist() == [2, 2] for predicted in got.values())
    near = knn(bank, labels, torch.tensor([[0.7, 0.8]]), ks=(5,), temperature=0.01)[5]
    assert near.item() == 0  # one sample for sure, and four of the copies shared by 15, 20 and 35


@pytest.mark.parametrize("k", [1, 7, 20])
def test_blank_pictures_are_of_the_commonest_class_in_leave_one_out(k):
    labels = torch.tensor([1] * 20 + [2] * 35 + [0] * 15)
    assert leave_one_out(torch.ones(70, 8), labels, k=k) == 0.5  # of a class of 35 the other 34 remain
    pairs = torch.eye(12).repeat_interleave(2, dim=0)  # the nearest is a copy, all others are as far
    assert leave_one_out(pairs, torch.arange(24) // 2, k=k) == 1.0


def test_names_of_classes_decide_nothing():
    bank, labels = blobs(200)
    bank, labels = torch.cat([bank, bank[:40]]), torch.cat([labels, (labels[:40] + 1) % 3])  # copies, other labels
    queries, _ = blobs(100, seed=1)
    renamed = torch.tensor([2, 0, 1])
    first, again = knn(bank, labels, queries, ks=(20,)), knn(bank, renamed[labels], queries, ks=(20,))
    assert torch.equal(renamed[first[20]], again[20])


def test_k_past_the_bank_is_the_bank():
    bank, labels = blobs(15)
    queries, _ = blobs(9, seed=1)
    got = knn(bank, labels, queries)
    assert list(got) == [10, 15]
    assert torch.equal(got[15], knn(bank, labels, queries, ks=(15,))[15])


@pytest.mark.parametrize(("some", "part"), [(1, 1), (3, 7), (16, 30), (1000, 13)])
def test_chunks_give_what_one_product_gives(monkeypatch, some, part):
    bank, labels = blobs(101)
    queries, _ = blobs(37, seed=1)
    whole, alone = knn(bank, labels, queries), leave_one_out(bank, labels)
    monkeypatch.setattr(module, "QUERIES", some)
    monkeypatch.setattr(module, "BANK", part)
    chunked = knn(bank, labels, queries)
    assert all(torch.equal(whole[k], chunked[k]) for k in whole)
    assert leave_one_out(bank, labels) == alone


@pytest.mark.parametrize("n", range(1, 18))
def test_every_query_is_counted_once(monkeypatch, n):
    monkeypatch.setattr(module, "QUERIES", 5)
    bank, labels = blobs(30)
    queries, truth = blobs(n, seed=n)
    predicted = knn(bank, labels, queries, ks=(3,))[3]
    assert predicted.shape == (n,)
    rows, y = bank.double().tolist(), labels.tolist()
    right = sum(
        by_hand(rows, y, q, 3, 0.07) == t for q, t in zip(queries.double().tolist(), truth.tolist(), strict=True)
    )
    assert top1(predicted, truth) == pytest.approx(right / n, abs=1e-12)


def test_a_tiny_temperature_does_not_overflow():
    bank, labels = blobs(40)
    got = knn(bank, labels, bank, ks=(20,), temperature=1e-4)
    assert top1(got[20], labels) == 1.0


def test_leave_one_out_never_asks_the_sample_itself():
    x = torch.eye(6).repeat_interleave(2, dim=0)  # each sample has one copy, of another label
    assert leave_one_out(x, torch.tensor([0, 1] * 6), k=1) == 0.0
    copies = torch.ones(30, 4)  # more copies than neighbours
    assert leave_one_out(copies, torch.zeros(30, dtype=torch.int64), k=5) == 1.0
    assert leave_one_out(torch.eye(2), torch.tensor([0, 1])) == 0.0
    assert leave_one_out(torch.eye(3), torch.tensor([0, 0, 1]), k=20) == pytest.approx(2 / 3)  # k past the others


def test_bad_input_is_refused():
    bank, labels = blobs(10)
    with pytest.raises(ValueError, match="bank: 1 samples have no label"):
        knn(bank, labels.index_fill(0, torch.tensor([3]), -1), bank)
    with pytest.raises(ValueError, match=r"queries must be \(q, 5\)"):
        knn(bank, labels, bank[:, :4])
    with pytest.raises(ValueError, match="ks positive"):
        knn(bank, labels, bank, ks=(0, 5))
    with pytest.raises(ValueError, match="1 of 10 rows"):
        knn(bank.index_fill(0, torch.tensor([2]), torch.inf), labels, bank)
    with pytest.raises(ValueError, match="queries: 10 of 10 rows"):
        knn(bank, labels, bank * torch.nan)
    with pytest.raises(ValueError, match="two samples"):
        leave_one_out(bank[:1], labels[:1])


def test_balanced_accuracy_weighs_classes_alike():
    labels = torch.tensor([4, 4, 4, 4, 9, 9])
    predicted = torch.tensor([4, 4, 4, 9, 9, 4])
    assert top1(predicted, labels) == pytest.approx(4 / 6)
    assert mean_per_class(predicted, labels) == pytest.approx((3 / 4 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="n > 0"):
        top1(predicted[:0], labels[:0])


def concentrated(n, d, mean, spread, seed):
    """Unit vectors around a common direction: spread 0 is a collapsed encoder."""
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(mean + spread * torch.randn(n, d, generator=g), dim=1)


@pytest.mark.parametrize("k", [1, 20, 200])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1.0, 0.3), (1.0, 0.002)])
def test_candidates_in_bf16_settle_for_the_neighbours_of_fp32(monkeypatch, mean, spread, k):
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(module, "ROUNDED", 100)
    bank, queries = (concentrated(n, 48, mean, spread, seed) for n, seed in ((3000, 0), (40, 1)))
    index = module.Index(bank)
    assert index.rounded is not None and index.rounded.dtype == torch.bfloat16
    near, where = index.nearest(queries, k)
    best, truth = module.nearest(queries, bank, k)
    assert (near - best).abs().max() < 1e-6
    # of two that are equally near in fp32 either may be taken
    exact = (queries[:, None].double() * bank[where].double()).sum(-1)
    assert (exact - (queries[:, None].double() * bank[truth].double()).sum(-1)).abs().max() < 1e-6
    assert (near.diff(dim=1) <= 0).all() and all(len(set(row)) == k for row in where.tolist())


def test_a_neighbour_that_rounding_could_hide_is_looked_for_in_fp32(monkeypatch):
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(module, "ROUNDED", 100)
    bank = concentrated(3000, 48, 1.0, 0.01, 0)
    # far more equals in bf16 than there are candidates, one of them the nearest in fp32
    bank[:1500], bank[1500:] = bank[0], -bank[0]
    bank[1234, 0] += 1e-5
    query, asked = torch.nn.functional.normalize(torch.eye(48)[:1] + bank[:1], dim=1), []
    exact = module.nearest
    monkeypatch.setattr(module, "nearest", lambda q, b, k: asked.append(b.dtype) or exact(q, b, k))
    _, where = module.Index(bank).nearest(query, 1)
    assert asked == [torch.bfloat16, torch.float32] and where.item() == 1234


def test_predictions_are_the_same_with_and_without_bf16(monkeypatch):
    monkeypatch.setattr(module, "ROUNDED", 100)
    bank, labels = blobs(2000, d=64, classes=10)
    queries, _ = blobs(300, d=64, classes=10, seed=1)
    results = []
    for has in (False, True):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda has=has: has)
        results.append((knn(bank, labels, queries), leave_one_out(bank, labels)))
    assert all(torch.equal(results[0][0][k], results[1][0][k]) for k in results[0][0])
    assert results[0][1] == results[1][1]
