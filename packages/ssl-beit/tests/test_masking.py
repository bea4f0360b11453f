"""Block masks follow the published law."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from ssl_beit import block_mask

DRAWS = 2000


def plain_mask(side: int, budget: int, smallest: int, dice: random.Random) -> list[list[int]]:
    """The law in loops over cells."""
    mask = [[0] * side for _ in range(side)]
    count = 0
    while count < budget:
        rest, added = budget - count, 0
        for _ in range(10):
            area = dice.uniform(smallest, rest)
            aspect = math.exp(dice.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= side or w >= side:
                continue
            top, left = dice.randint(0, side - h), dice.randint(0, side - w)
            cells = [(y, x) for y in range(top, top + h) for x in range(left, left + w) if not mask[y][x]]
            if 0 < len(cells) <= rest:
                for y, x in cells:
                    mask[y][x] = 1
                added = len(cells)
                break
        if not added:
            break
        count += added
    return mask


def drawn(side: int, budget: int, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """(ours, the plain ones), (DRAWS, side, side) each."""
    rng, dice = np.random.default_rng(0), random.Random(0)
    ours = np.stack([block_mask(side, side, budget, rng, smallest=smallest) for _ in range(DRAWS)])
    return ours, np.array([plain_mask(side, budget, smallest, dice) for _ in range(DRAWS)], bool)


@pytest.mark.parametrize(("side", "budget", "smallest"), [(14, 75, 16), (8, 25, 6), (4, 6, 2)])
def test_masks_have_the_statistics_of_a_plain_implementation(side, budget, smallest):
    ours, plain = drawn(side, budget, smallest)
    for statistic in (
        lambda m: m.sum((1, 2)),  # how many
        lambda m: m.sum((1, 2)) == budget,  # how often all of them
        lambda m: (m[:, 1:] != m[:, :-1]).sum((1, 2)),  # edges, so how large the blocks are
        lambda m: m.any(2).sum(1),  # rows that are touched
        lambda m: m[:, 0, 0],
        lambda m: m[:, side // 2, side // 2],
    ):
        a, b = (statistic(m).astype(float) for m in (ours, plain))
        error = math.sqrt((a.var() + b.var()) / DRAWS)
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-9


def test_a_mask_covers_at_most_75_patches_and_seldom_fewer():
    rng = np.random.default_rng(1)
    counts = np.array([block_mask(14, 14, 75, rng).sum() for _ in range(DRAWS)])
    assert counts.max() == 75
    assert counts.min() >= 50
    assert counts.mean() == pytest.approx(74.5, abs=0.3)


class Fixed:
    """A generator that draws the same number always."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value)


@pytest.mark.parametrize(("height", "count"), [(14, 0), (16, 0), (17, 80)])
def test_a_block_is_never_as_high_as_the_grid(height, count):
    # near 1 the draws make a block of 16 x 5 patches
    assert block_mask(height, 20, 80, Fixed(0.999), smallest=80).sum() == count


@pytest.mark.parametrize(("width", "count"), [(14, 0), (16, 0), (17, 80)])
def test_a_block_is_never_as_wide_as_the_grid(width, count):
    # near 0 they make one of 5 x 16
    assert block_mask(20, width, 80, Fixed(0.001), smallest=80).sum() == count


def test_masks_differ_and_the_generator_decides_them():
    masks = [block_mask(14, 14, 75, np.random.default_rng(seed)) for seed in (0, 1, 0)]
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    assert masks[0].dtype == bool and masks[0].shape == (14, 14)


def test_a_grid_need_not_be_square_nor_narrow():
    rng = np.random.default_rng(3)
    assert block_mask(3, 70, 40, rng, smallest=4).shape == (3, 70)
    assert 0 < block_mask(2, 9, 5, rng, smallest=1).sum() <= 5


@pytest.mark.parametrize(("height", "width", "budget"), [(1, 14, 3), (14, 14, 0), (4, 4, 17)])
def test_masks_that_cannot_be_are_refused(height, width, budget):
    with pytest.raises(ValueError, match=f"no block mask of {budget} patches on a grid of {height} x {width}"):
        block_mask(height, width, budget, np.random.default_rng(0))
