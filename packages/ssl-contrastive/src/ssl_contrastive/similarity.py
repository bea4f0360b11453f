"""The softmax denominators of contrastive losses, in blocks: neither the matrix of similarities nor its gradient exists.

A loss -log(e^{s_ij} / Σ_k e^{s_ik}) needs only the row sums of the (n, m) similarities, and their gradient is

    ∂/∂a_i = scale · Σ_k p_ik b_k,    ∂/∂b_k = scale · Σ_i p_ik a_i,    p_ik = e^{s_ik} / Σ_k e^{s_ik}

so both are summed up while a block of rows is in the cache: the dense form's three matrix products, one pass of
exponentials, and O((n + m) d) of memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = {"cpu": 2**19}
"""Similarities at a time, by device: what a core's cache holds in fp32."""
LARGE_BLOCK = 2**24
"""Elsewhere: 64 MB in fp32."""


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in at least fp32: exp(1 / 0.07) is infinite in half precision."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def sum_log_sum_exp(
    anchors: Tensor, keys: Tensor, scale: float, *, own: Tensor | None = None, extra: Tensor | None = None
) -> Tensor:
    """Σ_i log Σ_k exp(scale · a_i · b_k) of `anchors` (n, d) over `keys` (m, d), a scalar; exact gradient to all.

    `own` (n,) is the one key that each anchor leaves out, itself; `extra` (n,) is one logit more for each anchor.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        return _SumLogSumExp.apply(anchors, keys, scale, own, extra)  # type: ignore[no-any-return]


class _SumLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, anchors: Tensor, keys: Tensor, scale: float, own: Tensor | None, extra: Tensor | None
    ) -> Tensor:
        to_anchors, to_keys = ctx.needs_input_grad[:2]
        total = anchors.new_zeros(())
        anchor_grad = torch.empty_like(anchors) if to_anchors else None
        key_grad = torch.zeros_like(keys) if to_keys else None
        extra_grad = None if extra is None else torch.empty_like(extra)
        size = max(1, BLOCK.get(anchors.device.type, LARGE_BLOCK) // max(1, len(keys)))
        for start in range(0, len(anchors), size):
            rows = slice(start, start + size)
            weights = (anchors[rows] * scale) @ keys.T  # r m
            if own is not None:
                weights.scatter_(1, own[rows, None], -torch.inf)
            top = weights.amax(1, keepdim=True)  # r 1
            if extra is not None:
                top = torch.maximum(top, extra[rows, None])
            sums = weights.sub_(top).exp_().sum(1, keepdim=True)
            if extra is not None and extra_grad is not None:
                own_weight = (extra[rows, None] - top).exp()
                sums = sums + own_weight
                extra_grad[rows] = (own_weight / sums)[:, 0]
            total = total + (top + sums.log()).sum()
            if anchor_grad is not None:
                anchor_grad[rows] = (weights @ keys).mul_(scale / sums)
            if key_grad is not None:
                key_grad.addmm_(weights.T, anchors[rows] * (scale / sums))
        ctx.save_for_backward(anchor_grad, key_grad, extra_grad)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        anchor_grad, key_grad, extra_grad = (None if g is None else g * grad for g in ctx.saved_tensors)
        return anchor_grad, key_grad, None, None, extra_grad
