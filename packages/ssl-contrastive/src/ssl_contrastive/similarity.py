"""The softmax denominators of contrastive losses, in blocks: neither the matrix of similarities nor its gradient exists.

A loss -log(e^{s_ij} / Σ_k e^{s_ik}) needs only the row sums of the (n, m) similarities, and their gradient is

    ∂/∂a_i = scale · Σ_k p_ik b_k,    ∂/∂b_k = scale · Σ_i p_ik a_i,    p_ik = e^{s_ik} / Σ_k e^{s_ik}

so both are summed up while a block of rows is in the cache: the dense form's three matrix products, one pass of
exponentials, and O((n + m) d) of memory.

Among themselves (NT-Xent on one device) s_ik = s_ki, and half of the exponentials w_ik are enough:

    ∂/∂z_i = scale · Σ_k w_ik (1/σ_i + 1/σ_k) z_k,    σ_i = Σ_k w_ik

the σ in a first pass over the blocks above the diagonal, the gradient in a second: half a product and one more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.device import no_autocast

BLOCK = {"cpu": 2**22}
"""Similarities at a time, by device: 16 MB in fp32, near a core, and 64 rows even against a queue of 65,536."""
LARGE_BLOCK = 2**24
"""Elsewhere: 64 MB in fp32."""
KEPT = 2**24
"""Exponentials that the first pass among themselves keeps for the second, 64 MB in fp32; the others are computed again."""
NARROW = 40.0
"""Of a smaller scale, exp(2 · scale) and sums of millions of its inverse are normal numbers in fp32."""


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in at least fp32: exp(1 / 0.07) is infinite in half precision."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _rows(keys: Tensor) -> int:
    """Rows of a block of similarities to `keys`."""
    return max(1, BLOCK.get(keys.device.type, LARGE_BLOCK) // max(1, len(keys)))


def sum_log_sum_exp(
    anchors: Tensor, keys: Tensor, scale: float, *, own: Tensor | None = None, extra: Tensor | None = None
) -> Tensor:
    """Σ_i log Σ_k exp(scale · a_i · b_k) of `anchors` (n, d) over `keys` (m, d), a scalar; exact gradient to all.

    `own` (n,) is the one key that each anchor leaves out, itself; `extra` (n,) is one logit more for each anchor.
    """
    with no_autocast(anchors.device):
        wanted = anchors.requires_grad, keys.requires_grad
        return _summed(anchors, keys, scale, own, extra, *wanted)[0]


# An operator of its own, which torch.compile takes as it is: the loop over blocks is not unrolled.
@torch.library.custom_op(
    "ssl_contrastive::sum_log_sum_exp",
    mutates_args=(),
    schema="(Tensor anchors, Tensor keys, float scale, Tensor? own, Tensor? extra, bool to_anchors, bool to_keys)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _summed(
    anchors: Tensor, keys: Tensor, scale: float, own: Tensor | None, extra: Tensor | None,
    to_anchors: bool, to_keys: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum, and its gradients to `anchors`, `keys` and `extra`; what is not wanted is empty."""
    total, anchor_grad, key_grad, extra_grad = _like(anchors, keys, scale, own, extra, to_anchors, to_keys)
    total.zero_()
    key_grad.zero_()
    size = _rows(keys)
    for start in range(0, len(anchors), size):
        rows = slice(start, start + size)
        weights = (anchors[rows] * scale) @ keys.T  # r m
        if own is not None:
            weights.scatter_(1, own[rows, None], -torch.inf)
        top = weights.amax(1, keepdim=True)  # r 1
        if extra is not None:
            top = torch.maximum(top, extra[rows, None])
        sums = weights.sub_(top).exp_().sum(1, keepdim=True)
        if extra is not None:
            weight = (extra[rows, None] - top).exp()
            sums += weight
            extra_grad[rows] = (weight / sums)[:, 0]
        total += (top + sums.log()).sum()
        if to_anchors:
            anchor_grad[rows] = (weights @ keys).mul_(scale / sums)
        if to_keys:
            key_grad.addmm_(weights.T, anchors[rows] * (scale / sums))
    return total, anchor_grad, key_grad, extra_grad


@_summed.register_fake
def _like(
    anchors: Tensor, keys: Tensor, scale: float, own: Tensor | None, extra: Tensor | None,
    to_anchors: bool, to_keys: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        anchors.new_empty(()),
        torch.empty_like(anchors) if to_anchors else anchors.new_empty(0),
        torch.empty_like(keys) if to_keys else keys.new_empty(0),
        anchors.new_empty(0) if extra is None else torch.empty_like(extra),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.has_extra, ctx.wanted = inputs[4] is not None, inputs[5:]
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    to_anchors, to_keys = ctx.wanted
    anchor_grad, key_grad, extra_grad = (g * grad for g in ctx.saved_tensors)
    return (
        anchor_grad if to_anchors else None, key_grad if to_keys else None, None, None,
        extra_grad if ctx.has_extra else None, None, None,
    )  # fmt: skip


_summed.register_autograd(_backward, setup_context=_keep)


def sum_log_sum_exp_among(z: Tensor, scale: float) -> Tensor:
    """Σ_i log Σ_{k≠i} exp(scale · z_i · z_k) of rows of length one (n, d), a scalar; exact gradient."""
    if scale > NARROW:
        return sum_log_sum_exp(z, z, scale, own=torch.arange(len(z), device=z.device))
    with no_autocast(z.device):
        return _summed_among(z, scale, z.requires_grad)[0]


@torch.library.custom_op("ssl_contrastive::sum_log_sum_exp_among", mutates_args=())
def _summed_among(z: Tensor, scale: float, to_z: bool) -> tuple[Tensor, Tensor]:
    """The sum, and its gradient; empty where it is not wanted."""
    n, kept = len(z), []
    sums = z.new_zeros(n)
    size = _rows(z)
    room = KEPT if to_z else 0
    for start in range(0, n, size):
        weights = _exponentials(z, scale, start, size)
        sums[start : start + size] += weights.sum(1)
        sums[start + size :] += weights[:, size:].sum(0)
        if weights.numel() <= room:
            kept.append(weights)
            room -= weights.numel()
        else:
            room = 0
    total = n * scale + sums.log().sum()
    if not to_z:
        return total, z.new_empty(0)
    grad, inverse = torch.zeros_like(z), sums.reciprocal()
    for block, start in enumerate(range(0, n, size)):
        weights = kept[block] if block < len(kept) else _exponentials(z, scale, start, size)
        weights.mul_(inverse[start : start + size, None] + inverse[start:])
        grad[start : start + size].addmm_(weights, z[start:])
        grad[start + size :].addmm_(weights[:, size:].T, z[start : start + size])
    return total, grad.mul_(scale)


def _exponentials(z: Tensor, scale: float, start: int, size: int) -> Tensor:
    """exp(scale · (z_i · z_k − 1)) of the rows from `start` with themselves and all after them, 0 on the diagonal."""
    weights = (z[start : start + size] * scale) @ z[start:].T
    weights.sub_(scale).exp_().diagonal().zero_()
    return weights


@_summed_among.register_fake
def _(z: Tensor, scale: float, to_z: bool) -> tuple[Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z) if to_z else z.new_empty(0)


def _keep_among(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1])


def _backward_among(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return ctx.saved_tensors[0] * grad, None, None


_summed_among.register_autograd(_backward_among, setup_context=_keep_among)
