"""Relative positions of BEiT's attention: a table of learned biases by the offset of two patches.

Swin Transformer (arXiv 2103.14030, section 3.2) has the same table. BEiT adds three rows for CLS.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def relative_positions(grid: tuple[int, int]) -> Tensor:
    """Row of the table for each (query, key), (1 + n, 1 + n) int64, CLS first.

    Two patches that are Δ = query − key apart have the row (2w − 1)(Δr + h − 1) + Δc + w − 1. The
    last three rows are for CLS → patch, patch → CLS and CLS → CLS.
    """
    h, w = grid
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()  # n
    between = (2 * w - 1) * (rows[:, None] - rows + h - 1) + columns[:, None] - columns + w - 1  # n n
    index = torch.empty(h * w + 1, h * w + 1, dtype=torch.long)
    index[1:, 1:] = between
    last = table_rows(grid) - 1
    index[0], index[:, 0], index[0, 0] = last - 2, last - 1, last
    return index


def table_rows(grid: tuple[int, int]) -> int:
    """How many rows the table of a grid has: one for each offset, and three for CLS."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def interpolate_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The table (rows, heads) of an `old` grid resampled for a `new` one.

    Bilinear over the offsets; the rows of CLS stay. This is what transformers does.
    """
    if old == new:
        return table
    sides, wanted = (tuple(2 * side - 1 for side in grid) for grid in (old, new))
    # The offsets are an image with a channel for each head.
    offsets = rearrange(table[:-3], "(h w) heads -> 1 heads h w", h=sides[0])
    offsets = F.interpolate(offsets.float(), size=wanted, mode="bilinear").to(table.dtype)
    return torch.cat([rearrange(offsets, "1 heads h w -> (h w) heads"), table[-3:]])


class RelativeBias(nn.Module):
    """Learned bias of the attention's logits by relative position. It starts at 0."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), heads))
        self.register_buffer("index", relative_positions(grid), persistent=False)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(heads, 1 + n, 1 + n) for a grid of patches."""
        table = interpolate_table(self.relative_position_bias_table, self.grid, grid)
        index = self.index if grid == self.grid else relative_positions(grid).to(table.device)
        return rearrange(F.embedding(index, table), "n m heads -> heads n m")
