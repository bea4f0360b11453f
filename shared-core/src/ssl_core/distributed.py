"""Processes that train together. In a single process every function does nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    return dist.get_world_size() if is_on() else 1


def is_main() -> bool:
    return rank() == 0


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over processes, in place and without gradient; returns `x`."""
    if is_on():
        dist.all_reduce(x)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int]) -> Tensor:  # type: ignore[override]
        ctx.sizes = sizes
        longest = max(sizes)
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        start = sum(ctx.sizes[: dist.get_rank()])
        return grad[start : start + ctx.sizes[dist.get_rank()]], None


def row_counts(x: Tensor) -> list[int]:
    """How many rows `x` has on every process, in the order of the ranks."""
    if not is_on():
        return [x.shape[0]]
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([x.shape[0]], device=x.device))
    return [int(n) for n in counts]


def gather(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows of every process, (n_total, …), in the order of the ranks, with gradient.

    Ranks may hold different numbers of rows. Pass them as `counts` if you know them already (from
    `row_counts`). The backward pass sums what every rank sends to a row, so with DDP's
    mean over processes a loss over local anchors against gathered keys has the gradient of the
    one-process batch; with unequal ranks weight the local mean by n_rank · world / n_total.
    """
    if not is_on():
        return x
    return _Gather.apply(x, row_counts(x) if counts is None else counts)  # type: ignore[no-any-return]


def broadcast(x: Tensor) -> Tensor:
    """The main process's `x` on every process, in place; returns it."""
    if is_on():
        dist.broadcast(x, 0)
    return x
