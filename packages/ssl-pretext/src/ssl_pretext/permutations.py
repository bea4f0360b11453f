"""Orders of jigsaw tiles that differ in as many places as orders can.

A puzzle whose orders agree in many places is ambiguous (Noroozi and Favaro 2016, arXiv 1603.09246,
section 3.1). So the paper picks a set of permutations by a greedy search for a large *mean* Hamming
distance. A mean says little: its hundred permutations have a mean of 8.08 and a minimum of 2. For
nine tiles, groups give the best minimum, in milliseconds:

    group                                permutations  distance
    translations of GF(9)                           9         9
    AGL(1, 9): x → a·x + b                         72         8  sharply 2-transitive on 9 elements
    PGL(2, 8): x → (a·x + b)/(c·x + d)            504         7  sharply 3-transitive on 8 and ∞
    PΓL(2, 8): with x → x², x⁴                   1512         6

There can be at most n!/(d - 1)! permutations of n elements at distance d, because no two of them
agree in n - d + 1 given places. The first three groups reach this bound, so no larger set of that
distance exists.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

FEW, MANY, MOST = 72, 504, 1512
"""Sizes of the three groups over nine tiles."""


def permutation_set(count: int, tiles: int = 9, seed: int = 0) -> Tensor:
    """Orders with the largest minimum Hamming distance that we know: int64 (count, tiles).

    Of nine tiles, up to 9 orders differ in all places, 72 in 8 or more, 504 in 7 or more and 1512
    in 6 or more. That is the best possible up to 504. Larger sets, and those of fewer tiles, come
    from a greedy search for the farthest next order. `seed` chooses which orders. Raises ValueError
    if there are not as many orders, and for more than nine tiles.
    """
    if not 2 <= tiles <= 9:
        raise ValueError(f"tiles = {tiles}: permutation sets are for 2 to 9 tiles")
    most = int(np.prod(np.arange(1, tiles + 1)))
    if not 1 <= count <= most:
        raise ValueError(f"count = {count}: {tiles} tiles have {most} orders")
    rng = np.random.default_rng(seed)
    if tiles == 9 and count <= MOST:
        group = _affine(scale=count > 9) if count <= FEW else _projective(frobenius=count > MANY)
        # Renaming the tiles and picking among the orders keeps their distances.
        group = rng.permutation(tiles)[group]
        return torch.from_numpy(rng.permutation(group)[:count].astype(np.int64))
    return torch.from_numpy(_farthest(count, tiles, rng).astype(np.int64))


def _farthest(count: int, tiles: int, rng: np.random.Generator) -> np.ndarray:
    """Take greedily the order whose nearest chosen one is farthest. The mean decides ties."""
    every = np.array(list(permutations(range(tiles))), dtype=np.int8)
    chosen = [int(rng.integers(len(every)))]
    nearest, total = np.full(len(every), tiles, dtype=np.int64), np.zeros(len(every), dtype=np.int64)
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(1)
        nearest, total = np.minimum(nearest, distance), total + distance
        # The total is below tiles · count + 1, so it only decides between equal minima.
        chosen.append(int((nearest * (tiles * count + 1) + total).argmax()))
    return every[chosen]


def _affine(*, scale: bool) -> np.ndarray:
    """x → a·x + b over GF(9), its elements u + v·i with i² = -1. Only a = 1 unless `scale`."""
    elements = [(u, v) for u in range(3) for v in range(3)]
    number = {element: k for k, element in enumerate(elements)}

    def image(a: tuple[int, int], b: tuple[int, int], x: tuple[int, int]) -> int:
        real, imaginary = a[0] * x[0] - a[1] * x[1] + b[0], a[0] * x[1] + a[1] * x[0] + b[1]
        return number[real % 3, imaginary % 3]

    scales = elements[1:] if scale else [(1, 0)]
    return np.array([[image(a, b, x) for x in elements] for a in scales for b in elements])


def _projective(*, frobenius: bool) -> np.ndarray:
    """x → (a·x + b)/(c·x + d) over GF(8) and ∞ = 8, with ad - bc ≠ 0.

    With `frobenius` these follow x → x, x², x⁴.
    """
    # Elements are the bits of polynomials modulo z³ + z + 1, whose root generates all but 0.
    powers = [1]
    while len(powers) < 7:
        doubled = powers[-1] << 1
        powers.append(doubled ^ 0b1011 if doubled & 8 else doubled)
    log = {x: k for k, x in enumerate(powers)}

    def times(x: int, y: int) -> int:
        return powers[(log[x] + log[y]) % 7] if x and y else 0

    def image(a: int, b: int, c: int, d: int, x: int) -> int:
        # x = ∞ goes to a/c, and division by zero gives ∞
        above, below = (a, c) if x == 8 else (times(a, x) ^ b, times(c, x) ^ d)
        return times(above, powers[-log[below] % 7]) if below else 8

    # A common factor of a, b, c, d changes nothing. It is chosen so that the first of c, d that is
    # not 0 is 1.
    matrices = [
        (a, b, c, d)
        for c, d in [(0, 1), *((1, d) for d in range(8))]
        for a in range(8)
        for b in range(8)
        if times(a, d) ^ times(b, c)
    ]
    maps = np.array([[image(*matrix, x) for x in range(9)] for matrix in matrices])
    if not frobenius:
        return maps
    # squaring is the field's automorphism, of order three
    square = np.array([*(times(x, x) for x in range(8)), 8])
    return np.concatenate([maps, maps[:, square], maps[:, square[square]]])
