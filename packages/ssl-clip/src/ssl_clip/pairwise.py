"""All images against all texts, a block of rows at a time: what CLIP's and SigLIP's losses share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ssl_core import distributed

BLOCK = 2**20
"""Logits that are held at a time: 4 MB in fp32, which a core's cache holds."""


def exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in fp32, or in fp64 where one of them is: no logit is rounded to half precision."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return tuple(tensor.to(torch.float64 if double else torch.float32) for tensor in tensors)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast, where there is any."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def check_pairs(image: Tensor, text: Tensor) -> None:
    """ValueError unless both are (n, d)."""
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be (n, d), got {tuple(image.shape)} and {tuple(text.shape)}")


def row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows of which each has at most BLOCK entries, or is one row."""
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def all_rows(x: Tensor) -> tuple[Tensor, int]:
    """(rows of every process in the order of the ranks, place of this one's first row). Without gradient."""
    counts = distributed.row_counts(x)
    return distributed.gather(x, counts), sum(counts[: distributed.rank()])


def own_rows(gradient: Tensor, rows: int, first: int) -> Tensor:
    """This process's part of a gradient (n_total, d) to which every process adds. Changes `gradient`."""
    return distributed.all_reduce_sum(gradient)[first : first + rows]
