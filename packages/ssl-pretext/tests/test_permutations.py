"""Permutation sets: their distances, against plain counting, and what they refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ssl_pretext import permutation_set


def hamming(orders: torch.Tensor) -> torch.Tensor:
    """Number of places in which two orders differ, for all pairs of (p, t): int64 (p, p)."""
    return torch.stack([(orders != order).sum(1) for order in orders])


def closest(orders: torch.Tensor) -> int:
    """Smallest distance of two orders, counted in plain Python."""
    rows = orders.tolist()
    return min(sum(x != y for x, y in zip(a, b, strict=True)) for a, b in itertools.combinations(rows, 2))


@pytest.mark.parametrize(
    ("count", "distance"),
    [(2, 9), (9, 9), (10, 8), (72, 8), (73, 7), (100, 7), (504, 7), (505, 6), (1000, 6), (1512, 6)],
)
def test_every_two_orders_differ_in_as_many_places_as_can_be(count, distance):
    orders = permutation_set(count)
    assert orders.shape == (count, 9) and orders.dtype == torch.int64
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(count, 9)), "a row is no permutation"
    between = hamming(orders) + 9 * torch.eye(count, dtype=torch.int64)
    assert int(between.min()) == distance


@pytest.mark.parametrize("count", [9, 72, 100])
def test_the_distances_are_those_of_plain_counting(count):
    orders = permutation_set(count)
    assert closest(orders) == int((hamming(orders) + 9 * torch.eye(count, dtype=torch.int64)).min())


def test_no_larger_set_of_the_same_distance_exists():
    """n!/(d - 1)! is the bound; 9, 72 and 504 meet it for distances 9, 8 and 7."""
    for count, distance in ((9, 9), (72, 8), (504, 7)):
        assert count == math.factorial(9) // math.factorial(distance - 1)


def test_the_mean_distance_is_that_of_the_whole_group():
    for count, mean in ((72, 8.113), (504, 8.016), (1512, 8.005)):
        between = hamming(permutation_set(count)).sum().item() / (count * (count - 1))
        assert between == pytest.approx(mean, abs=5e-4)


def test_every_place_sees_every_tile_equally_often():
    counts = torch.nn.functional.one_hot(permutation_set(72)).sum(0)
    assert torch.equal(counts, torch.full((9, 9), 8))


def test_the_seed_decides_and_nothing_else():
    assert torch.equal(permutation_set(100, seed=3), permutation_set(100, seed=3))
    assert not torch.equal(permutation_set(100, seed=3), permutation_set(100, seed=4))


@pytest.mark.parametrize(("count", "tiles", "distance"), [(24, 4, 2), (4, 4, 4), (2, 2, 2), (5, 5, 5)])
def test_other_numbers_of_tiles_are_searched(count, tiles, distance):
    orders = permutation_set(count, tiles)
    assert orders.shape == (count, tiles)
    assert len({tuple(row) for row in orders.tolist()}) == count
    assert closest(orders) == distance


@pytest.mark.parametrize(
    ("count", "tiles", "message"),
    [
        (0, 9, "count = 0: 9 tiles have 362880 orders"),
        (7, 3, "count = 7: 3 tiles have 6 orders"),
        (5, 10, "tiles = 10: permutation sets are for 2 to 9 tiles"),
        (1, 1, "tiles = 1"),
    ],
)
def test_more_orders_than_there_are_is_refused(count, tiles, message):
    with pytest.raises(ValueError, match=message):
        permutation_set(count, tiles)
