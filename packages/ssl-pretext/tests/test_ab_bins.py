"""Colours as classes: which bins there are, soft classes, weights, and how colours are read off."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_pretext.ab_bins import ab_bins, annealed_mean, rebalancing, smoothing, soft_encode
from ssl_pretext.lab import rgb_to_lab


def test_there_are_261_bins_of_ten_and_every_colour_has_one():
    bins = ab_bins()
    assert bins.shape == (261, 2)
    assert torch.equal(bins, bins.round(decimals=-1))
    colours = torch.rand(1, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    ab = rgb_to_lab(colours)[0, 1:].flatten(1).T
    assert (torch.cdist(ab, bins).min(1).values < 50**0.5 + 1e-3).all(), "farther than the corner of a cell"


def test_bins_of_the_whole_cube_are_no_more_than_those_of_its_surface():
    levels = torch.arange(0, 256, 5, dtype=torch.float64) / 255
    inside = torch.cartesian_prod(levels, levels, levels).T[None, :, :, None]
    cells = (rgb_to_lab(inside)[0, 1:, :, 0].T / 10).round().mul(10).float()
    known = {tuple(row) for row in ab_bins().tolist()}
    assert {tuple(row) for row in cells.unique(dim=0).tolist()} <= known


def test_soft_classes_equal_plain_python():
    bins = ab_bins()
    ab = torch.tensor([[3.0, -4.0], [80.09, 67.2], [-12.5, 31.0]])
    ids, soft = soft_encode(ab, bins, neighbours=5)
    for (a, b), row_ids, row in zip(ab.tolist(), ids.tolist(), soft.tolist(), strict=True):
        squared = [(a - x) ** 2 + (b - y) ** 2 for x, y in bins.tolist()]
        nearest = sorted(range(261), key=lambda q: squared[q])[:5]
        assert {*row_ids} == {*nearest} and row_ids[0] == nearest[0]
        raw = [math.exp(-squared[q] / 50) for q in row_ids]
        assert row == pytest.approx([x / sum(raw) for x in raw], rel=1e-4)


def test_soft_classes_sum_to_one_and_begin_with_the_nearest():
    ab = 160 * torch.rand(500, 2, generator=torch.Generator().manual_seed(1)) - 80
    bins = ab_bins()
    ids, soft = soft_encode(ab, bins)
    assert ids.shape == soft.shape == (500, 10)
    assert torch.allclose(soft.sum(1), torch.ones(500))
    assert (soft.diff(dim=1) <= 1e-7).all()
    assert torch.equal(ids[:, 0], torch.cdist(ab, bins, compute_mode="donot_use_mm_for_euclid_dist").argmin(1))


@pytest.mark.parametrize("uniform", [0.1, 0.5, 1.0])
def test_the_expected_weight_is_one(uniform):
    prior = torch.rand(261, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 8
    prior = prior / prior.sum()
    weight = rebalancing(prior, uniform)
    assert (prior * weight).sum().item() == pytest.approx(1, abs=1e-12)
    assert (weight[prior.argsort()].diff() <= 1e-12).all(), "a rarer colour weighs less"


def test_weights_are_all_one_when_only_the_uniform_share_counts():
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    assert torch.allclose(rebalancing(prior, 1.0), torch.ones(3, dtype=torch.float64), atol=1e-14)


def test_weights_equal_plain_python():
    prior, uniform = [0.7, 0.2, 0.1], 0.5
    raw = [1 / ((1 - uniform) * p + uniform / 3) for p in prior]
    total = sum(p * w for p, w in zip(prior, raw, strict=True))
    assert rebalancing(torch.tensor(prior), uniform).tolist() == pytest.approx([w / total for w in raw], rel=1e-6)


def test_smoothing_keeps_the_sum_and_spreads_to_neighbours():
    bins = ab_bins()
    kernel = smoothing(bins)
    assert torch.allclose(kernel.sum(1), torch.ones(261))
    prior = torch.zeros(261)
    centre = int((bins == 0).all(1).nonzero())
    prior[centre] = 1
    spread = prior @ kernel
    beside = int((bins == torch.tensor([10.0, 0.0])).all(1).nonzero())
    assert (spread[beside] / spread[centre]).item() == pytest.approx(math.exp(-100 / 50), rel=1e-4)


def test_the_annealed_mean_goes_from_the_mean_to_the_mode():
    bins = ab_bins()
    generator = torch.Generator().manual_seed(0)
    logits = torch.stack([torch.randperm(261, generator=generator) / 50.0 for _ in range(20)])
    mean = logits.softmax(1) @ bins
    assert torch.equal(annealed_mean(logits, bins, 1.0), mean)
    assert torch.allclose(annealed_mean(logits, bins, 1e-3), bins[logits.argmax(1)], atol=0.05)
    between = annealed_mean(logits, bins)
    assert (between.norm(dim=1).mean() > mean.norm(dim=1).mean()).item(), "T = .38 is no more saturated than the mean"


def test_the_authors_factor_is_the_inverse_of_the_temperature():
    logits, bins = torch.randn(3, 261), ab_bins()
    assert torch.allclose(annealed_mean(logits, bins, 0.38), (2.6316 * logits).softmax(1) @ bins, atol=1e-2)
