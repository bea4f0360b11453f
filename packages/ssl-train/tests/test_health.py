from __future__ import annotations

import math

import pytest
import torch

from ssl_train.evaluate.health import feature_std, rankme


def normal(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("d", [64, 2048])
def test_isotropic_features_have_std_one(d):
    assert feature_std(normal(512, d)) == pytest.approx(1.0, abs=0.01)


def test_scale_does_not_matter_and_collapse_is_seen():
    x = normal(300, 32)
    assert feature_std(x * 1e4) == pytest.approx(feature_std(x), rel=1e-5)
    assert feature_std(torch.ones(50, 32)) == pytest.approx(0.0, abs=1e-6)
    assert feature_std(x + 10) < 0.2


def test_std_is_that_of_its_definition():
    rows = normal(7, 3).double().tolist()
    z = [[v / math.hypot(*row) for v in row] for row in rows]
    stds = []
    for column in zip(*z, strict=True):
        mean = sum(column) / 7
        stds.append(math.sqrt(sum((v - mean) ** 2 for v in column) / 6))
    assert feature_std(torch.tensor(rows)) == pytest.approx(sum(stds) / 3 * math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("d", [2, 17, 64])
def test_rankme_of_an_orthogonal_matrix_is_its_size(d):
    orthogonal = torch.linalg.qr(normal(d, d).double()).Q
    assert rankme(torch.eye(d)) == pytest.approx(d, rel=1e-9)
    assert rankme(orthogonal * 5) == pytest.approx(d, rel=1e-9)


def test_rankme_counts_directions():
    one = torch.outer(normal(100, 1)[:, 0], normal(1, 30)[0])
    assert rankme(one.double()) == pytest.approx(1.0, abs=1e-4)
    assert rankme(torch.ones(40, 8)) == pytest.approx(1.0, abs=1e-4)
    three = torch.zeros(90, 20)
    three[range(90), [0, 1, 2] * 30] = 1.0
    assert rankme(three) == pytest.approx(3.0, abs=1e-4)
    assert rankme(torch.zeros(10, 4)) == 0.0


def test_rankme_is_the_entropy_of_the_singular_values():
    for shape in ((50, 12), (12, 50)):
        x = normal(*shape).double()
        share = torch.linalg.svdvals(x) / torch.linalg.svdvals(x).sum()
        expected = math.exp(-sum(p * math.log(p) for p in share.tolist()))
        assert rankme(x) == pytest.approx(expected, rel=1e-9)
        assert rankme(x.T) == pytest.approx(expected, rel=1e-9)


def test_rankme_reads_rows_from_the_whole_of_a_long_set():
    x = torch.zeros(8192, 4)
    x[range(8192), [i // 2048 for i in range(8192)]] = 1.0  # sorted by class, as a folder is
    assert rankme(x) == pytest.approx(4.0, rel=1e-3)


def test_bad_input_is_refused():
    for measure in (feature_std, rankme):
        with pytest.raises(ValueError, match="n >= 2"):
            measure(torch.ones(1, 4))
        with pytest.raises(ValueError, match="n >= 2"):
            measure(torch.ones(4))
        with pytest.raises(ValueError, match="1 of 4 rows"):
            measure(torch.ones(4, 2).index_fill(0, torch.tensor([1]), torch.nan))
