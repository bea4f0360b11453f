"""The softmax denominators of NT-Xent and InfoNCE in blocks, without the matrix of similarities.

A loss −log(e^{s_ij} / Σ_k e^{s_ik}) with s_ik = scale · a_i·b_k needs only the logarithms of the
row sums. Their gradient is

    ∂/∂a_i = scale · Σ_k p_ik b_k,   ∂/∂b_k = scale · Σ_i p_ik a_i,   p_ik = e^{s_ik} / Σ_k e^{s_ik}

Value and gradient are summed together while a block of rows is in the cache. The cost is the dense
form's three matrix products, one pass of exponentials, and O((n + m) d) of memory.

When a batch is compared with itself (NT-Xent in one process), s_ik = s_ki and half of the
exponentials w_ik are enough:

    ∂/∂z_i = scale · Σ_k w_ik (1/σ_i + 1/σ_k) z_k,    σ_i = Σ_k w_ik

A first pass over the blocks above the diagonal gives σ, a second one the gradient: one matrix
product and a half.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core import distributed
from ssl_core.device import no_autocast

NARROW = 40.0
"""Up to this scale, exponentials in [exp(−2 · scale), 1] and their inverses are normal in fp32."""


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in at least fp32: exp(1 / 0.07) is infinite in half precision."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def batch_mean(x: Tensor) -> Tensor:
    """Mean of one value per sample, weighted so that DDP's mean over processes is the mean of the
    joined batch.

    With equal ranks it is the plain mean; with n_r of N samples on this rank, n_r · world / N times
    it. x (b,), fp32 or wider -> scalar.
    """
    if not distributed.is_on():
        return x.mean()
    total = distributed.all_reduce_sum(x.new_tensor([x.shape[0]]))
    return x.sum() * (distributed.world_size() / total[0])


def sum_log_sum_exp(
    anchors: Tensor, keys: Tensor, scale: float, *, own: int | None = None, extra: Tensor | None = None, block: int = 0
) -> Tensor:
    """Σ_i log Σ_k exp(scale · a_i·b_k) of `anchors` (n, d) over `keys` (m, d), a scalar.

    With `own`, anchor i is also key `own + i` and leaves itself out. `extra` (n,) is one more logit
    per anchor. `block` is the number of similarities in memory at a time, 0 for what suits the
    device.
    """
    with no_autocast(anchors.device):
        to = [anchors.requires_grad, keys.requires_grad]
        return _summed(anchors, keys, extra, own, scale, block, to)[0]


def sum_log_sum_exp_among(z: Tensor, scale: float, *, block: int = 0, kept: int = 2**24) -> Tensor:
    """Σ_i log Σ_{k≠i} exp(scale · z_i·z_k) of rows of length one (n, d), a scalar.

    The first pass keeps at most `kept` exponentials for the second (64 MB in fp32), which computes
    the others again.
    """
    if scale > NARROW:  # then one maximum for all rows is not safe: subtract each row's own
        return sum_log_sum_exp(z, z, scale, own=0, block=block)
    with no_autocast(z.device):
        return _summed_among(z, scale, block, kept, z.requires_grad)[0]


def slices(keys: Tensor, rows: int, block: int) -> list[slice]:
    """Slices of `rows` anchors with about `block` similarities to `keys` each.

    By default these are 16 MB in fp32 on a CPU: near a core, and 64 rows even against a queue of
    65,536. A GPU has 64.
    """
    block = block or (2**22 if keys.device.type == "cpu" else 2**24)
    size = max(1, block // max(1, len(keys)))
    return [slice(start, start + size) for start in range(0, rows, size)]


# Both sums are custom operators, so torch.compile does not unroll their loops over blocks. The
# first output is the sum. The others are its gradients to the first inputs, empty if not needed.


def _outputs(
    anchors: Tensor, keys: Tensor, extra: Tensor | None, own: int | None, scale: float, block: int, to: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the outputs of `_summed`; it also tells torch.compile their shapes."""
    anchor_grad = torch.empty_like(anchors) if to[0] else anchors.new_empty(0)
    key_grad = torch.empty_like(keys) if to[1] else keys.new_empty(0)
    extra_grad = anchors.new_empty(0) if extra is None else torch.empty_like(extra)
    return anchors.new_empty(()), anchor_grad, key_grad, extra_grad


@torch.library.custom_op("ssl_contrastive::sum_log_sum_exp", mutates_args=())
def _summed(
    anchors: Tensor, keys: Tensor, extra: Tensor | None, own: int | None, scale: float, block: int, to: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, anchor_grad, key_grad, extra_grad = _outputs(anchors, keys, extra, own, scale, block, to)
    total.zero_()
    key_grad.zero_()
    for rows in slices(keys, len(anchors), block):
        weights = (anchors[rows] * scale) @ keys.T  # r m
        if own is not None:
            weights.diagonal(own + rows.start).fill_(-torch.inf)

        # Subtract each row's largest logit before the exponential; add it to the logarithm.
        top = weights.amax(1, keepdim=True)  # r 1
        if extra is not None:
            top = torch.maximum(top, extra[rows, None])
        sums = weights.sub_(top).exp_().sum(1, keepdim=True)  # r 1
        if extra is not None:
            weight = (extra[rows, None] - top).exp()  # r 1
            sums += weight
            extra_grad[rows] = (weight / sums)[:, 0]
        total += (top + sums.log()).sum()

        # weights / sums are the p_ik; the division is done on the smaller factors of the products.
        if to[0]:
            anchor_grad[rows] = (weights @ keys).mul_(scale / sums)
        if to[1]:
            key_grad.addmm_(weights.T, anchors[rows] * (scale / sums))
    return total, anchor_grad, key_grad, extra_grad


@torch.library.custom_op("ssl_contrastive::sum_log_sum_exp_among", mutates_args=())
def _summed_among(z: Tensor, scale: float, block: int, kept: int, to: bool) -> tuple[Tensor, Tensor]:
    blocks = slices(z, len(z), block)
    room = kept if to else 0
    cache: dict[int, Tensor] = {}

    # The first pass: the row sums σ. Each block also counts for the rows below it, mirrored.
    sums = z.new_zeros(len(z))
    for rows in blocks:
        weights = _exponentials(z, scale, rows)  # r m, for r rows and the m from the first of them on
        sums[rows] += weights.sum(1)
        sums[rows.stop :] += weights[:, rows.stop - rows.start :].sum(0)
        if weights.numel() <= room:
            cache[rows.start] = weights
            room -= weights.numel()
    total = len(z) * scale + sums.log().sum()
    if not to:
        return total, z.new_empty(0)

    # The second pass: the gradient, again of each block and of its mirror image.
    grad, inverse = torch.zeros_like(z), sums.reciprocal()
    for rows in blocks:
        weights = cache[rows.start] if rows.start in cache else _exponentials(z, scale, rows)
        weights.mul_(inverse[rows, None] + inverse[rows.start :])
        grad[rows].addmm_(weights, z[rows.start :])
        grad[rows.stop :].addmm_(weights[:, rows.stop - rows.start :].T, z[rows])
    return total, grad.mul_(scale)


@_summed_among.register_fake
def _(z: Tensor, scale: float, block: int, kept: int, to: bool) -> tuple[Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z) if to else z.new_empty(0)


def _exponentials(z: Tensor, scale: float, rows: slice) -> Tensor:
    """exp(scale · (z_i·z_k − 1)) of `rows` with themselves and all after them; 0 on the diagonal.

    No similarity of rows of length one is above 1, so this one maximum serves all rows.
    """
    weights = (z[rows] * scale) @ z[rows.start :].T
    weights.sub_(scale).exp_().diagonal().zero_()
    return weights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.inputs = len(inputs)
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grads = [g * grad if needed else None for g, needed in zip(saved, ctx.needs_input_grad, strict=False)]
    return *grads, *[None] * (ctx.inputs - len(grads))


_summed.register_fake(_outputs)
_summed.register_autograd(_backward, setup_context=_keep)
_summed_among.register_autograd(_backward, setup_context=_keep)
