"""Cross-entropy of a linear head that never builds all logits.

    L = 1/|K| · Σ_{i ∈ K} (log Σ_v exp z_iv − z_{i, y_i}),   z_i = W h_i + b,   K = {i : y_i ≠ −100}

`cross_entropy` is this equation. `linear_cross_entropy` gives the same value and gradient, but
applies the head to a few rows at a time: dL/dz = softmax(z) − onehot(y) needs nothing but z, so its
products with W and h are taken at once. These are the three matrix products of whole logits,
without their n × v tensor. The backward pass only multiplies what is there by the incoming
gradient.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_core import distributed

IGNORED = -100
HELD = 2**20
"""Logits held at once, in LEAST_ROWS rows or more.

Every part reads and writes the gradient of W: in 16 bits larger parts take half the time
(docs/benchmarks.md)."""
LEAST_ROWS = {4: 128, 2: 512}
"""By the bytes of a logit; float64 takes float32's."""
CACHED = 2**18
"""Logits of one softmax on a CPU: a megabyte in float32, which stays in its cache."""


def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, with whole logits: mean −log p over the labels (n,) that are not -100."""
    kept = labels != IGNORED
    log_p = F.linear(hidden[kept], weight, bias).log_softmax(-1)  # k v
    return -log_p.gather(1, labels[kept][:, None]).mean()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, rows: int | None = None
) -> Tensor:
    """`cross_entropy` of hidden (…, d), weight (v, d), labels int64 (…) and bias (v,).

    It holds `rows` rows of logits at a time. Computed in float32, in float64 for float64 inputs;
    under autocast the products have its type. The loss is 0 if all labels are -100.

    In a process group the mean is over the labels of all ranks, however unevenly they are spread:
    each rank returns its sum times the number of ranks over the whole count. So the mean over
    ranks, by which DDP combines gradients, is exact.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)  # n d, n
    count = distributed.all_reduce_sum((labels != IGNORED).sum().to(torch.int64))
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, rows or _rows(hidden, weight))
    return total * distributed.world_size() / count.clamp(min=1)


@torch.no_grad()
def linear_nll(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, rows: int | None = None
) -> Tensor:
    """−log p of every label (n,), 0 where it is -100, with `rows` rows of logits at a time."""
    rows = rows or _rows(hidden, weight)
    parts = [
        F.cross_entropy(F.linear(h, weight, bias).float(), y, ignore_index=IGNORED, reduction="none")
        for h, y in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the labels (n,) that are not -100, the share that has the largest logit (n, v)."""
    counted = labels != IGNORED
    return ((logits.argmax(-1) == labels) & counted).sum() / counted.sum().clamp(min=1)


def count_targets(labels: Tensor) -> int:
    """How many labels count, that is, are not -100."""
    return int((labels != IGNORED).sum())


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses. The forward pass computes the gradients that are wanted as well."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rows: int) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        narrow = _product_type(hidden)
        head, shift = weight.to(narrow), None if bias is None else bias.to(narrow)
        on_meta = hidden.device.type == "meta"  # an estimate of costs counts the forward pass alone
        wanted = any(ctx.needs_input_grad) and not on_meta
        d_hidden = torch.empty_like(hidden) if wanted else None
        d_weight = torch.zeros_like(weight, dtype=wide) if wanted else None
        d_bias = torch.zeros_like(bias, dtype=wide) if wanted and bias is not None else None
        total = hidden.new_zeros((), dtype=wide)
        # the types are chosen here, so autocast must not choose again
        with nullcontext() if on_meta else torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                h, y = hidden[part].to(narrow), labels[part]
                z = F.linear(h, head, shift)  # rows v
                total += _nll_and_gradient(z, y, wide, d_bias)  # z is dL/dz from here on
                if d_hidden is not None and d_weight is not None:
                    d_hidden[part] = z @ head
                    _add_product(d_weight, z, h)
        if wanted:
            ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        # in place, because d_weight is as large as the head; autograd refuses a second pass over it
        d_bias = None if d_bias is None else d_bias * gradient
        return d_hidden * gradient, d_weight.mul_(gradient), d_bias, None, None


def _rows(hidden: Tensor, weight: Tensor) -> int:
    """Rows of logits that are held at once."""
    return max(LEAST_ROWS.get(_product_type(hidden).itemsize, LEAST_ROWS[4]), HELD // weight.shape[0])


def _nll_and_gradient(z: Tensor, labels: Tensor, wide: torch.dtype, d_bias: Tensor | None) -> Tensor:
    """The sum of −log p of the labels (n,) under logits z (n, v), in type `wide`.

    Replaces z by its gradient and adds that gradient's sum over the rows to `d_bias` (v,).
    """
    total = z.new_zeros((), dtype=wide)
    # as many rows at a time as a CPU's cache holds: the softmax reads and writes them several times
    at_once = max(1, CACHED // z.shape[1]) if z.device.type == "cpu" else len(z)
    for logits, y in zip(z.split(at_once), labels.split(at_once), strict=True):
        kept = y != IGNORED
        target = y.where(kept, 0)[:, None]  # r 1
        p = logits.to(wide)  # r v; the logits themselves if they are wide already
        near = p.gather(1, target)
        # in place: p = exp(z − max), then softmax(z) − onehot(y), 0 in the rows that do not count
        top = p.amax(1, keepdim=True)
        p = p.sub_(top).exp_()
        sums = p.sum(1, keepdim=True)
        total += ((top + sums.log() - near).squeeze(1) * kept).sum()
        p.mul_(kept[:, None] / sums).scatter_add_(1, target, -kept[:, None].to(wide))
        if d_bias is not None:
            d_bias += p.sum(0)
        if p.dtype != logits.dtype:
            logits.copy_(p)
    return total


def _product_type(hidden: Tensor) -> torch.dtype:
    """The type of the matrix products: that of autocast, where it is on."""
    device = hidden.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _add_product(total: Tensor, p: Tensor, h: Tensor) -> None:
    """total += pᵀ h, in the type of `total`."""
    if total.dtype == p.dtype:
        total.addmm_(p.T, h)
    else:
        total += p.T @ h
