"""The blocks of patches that BEiT hides (arXiv 2106.08254, algorithm 1)."""

from __future__ import annotations

import math

import numpy as np

ASPECT = 0.3
"""Blocks have aspect ratios from this to its inverse."""
TRIES = 10
"""Draws of a block before the mask is left as it is."""


def block_mask(
    height: int, width: int, budget: int, generator: np.random.Generator, *, smallest: int = 16
) -> np.ndarray:
    """Blockwise mask (h, w) bool of at most `budget` patches, as the authors' masking_generator.py.

    Blocks are laid on one another until the budget is used up, or until ten draws in a row bring
    nothing that fits. A block has `smallest` patches or more, as far as the rest of the budget
    goes, and a log-uniform aspect ratio. It is never as high or as wide as the grid.
    Raises ValueError if the grid has only one row or column, or fewer patches than the budget.
    """
    if min(height, width) < 2 or not 0 < budget <= height * width:
        raise ValueError(f"no block mask of {budget} patches on a grid of {height} x {width}")
    # A row is an integer of `width` bits: so a few operations on integers count and lay a block.
    rows, count = [0] * height, 0
    log_aspect = math.log(ASPECT)
    draws = iter(())
    while count < budget:
        rest = budget - count
        for _ in range(TRIES):
            # Random numbers come for 16 blocks at a time: a call of numpy costs more than a block.
            four = next(draws, None)
            if four is None:
                draws = iter(generator.random((16, 4)).tolist())
                four = next(draws)
            # A size and a place. Blocks that do not fit in the grid count as a try.
            area = smallest + (rest - smallest) * four[0]
            aspect = math.exp(log_aspect * (1 - 2 * four[1]))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= height or w >= width:
                continue
            top, left = int(four[2] * (height - h + 1)), int(four[3] * (width - w + 1))
            block = ((1 << w) - 1) << left
            # Only patches that no block covers yet count against the budget.
            new = h * w - sum((row & block).bit_count() for row in rows[top : top + h])
            if 0 < new <= rest:
                rows[top : top + h] = [row | block for row in rows[top : top + h]]
                count += new
                break
        else:
            break
    # Back from bits to a mask.
    packed = b"".join(row.to_bytes(-(-width // 8), "little") for row in rows)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    return bits.reshape(height, -1)[:, :width].astype(bool)
