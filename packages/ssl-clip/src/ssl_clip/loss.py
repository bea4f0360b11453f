"""The losses over all pairs of n images and n texts: CLIP's softmax, and SigLIP's sigmoid.

CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3) asks which text belongs to an image, and
which image to a text:

    s_ij = exp(τ) · x_i·y_j,    x, y L2-normalised
    L = ½ (1/n Σ_i −log softmax_j(s_ij)_i + 1/n Σ_j −log softmax_i(s_ij)_j)

SigLIP (Sigmoid Loss for Language Image Pre-Training, Zhai et al. 2023, arXiv 2303.15343) asks of
every image and every text whether they match, so nothing is normalised over the batch:

    L = −1/n Σ_i Σ_j log σ(z_ij (t · x_i·y_j + b)),    z_ii = 1, z_ij = −1 elsewhere
                                                       (section 3, algorithm 1; t = exp(t'))

`dense_clip_loss` and `dense_siglip_loss` are these equations, and hold n × n logits. `clip_loss`
and `siglip_loss` are what training uses. They give the same loss and the same gradient, but work
on blocks of rows, so at most 256 MB of logits are stored. With several processes the batch is that
of all of them: they exchange the texts and the sums over columns, and each computes the rows of its
own images, so every block of logits is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core import distributed
from ssl_core.device import no_autocast

BLOCK = 2**20
"""Logits that are computed at a time: 4 MB in fp32, which fits a core's cache."""
KEPT = 2**26
"""Logits that CLIP's loss keeps for its gradient, 256 MB in fp32. Others are computed again."""
NARROW = 60.0
"""exp(±60), and sums of millions of such numbers, are normal numbers in fp32."""


def dense_clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """The paper's figure 3: image and text (n, d), of any length; `scale` is exp(τ)."""
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    logits = scale * image @ text.T  # n n
    own = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def dense_siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The paper's algorithm 1: image and text (n, d), of any length; `scale` is exp(t')."""
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    logits = scale * image @ text.T + bias  # n n
    match = 2 * torch.eye(len(image), device=image.device) - 1  # z: 1 on the diagonal, -1 elsewhere
    return -F.logsigmoid(match * logits).sum() / len(image)


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss of n pairs: row i of `image` (n, d) belongs to row i of `text` (n, d).

    The rows can have any length: they are normalised here. `logit_scale` is exp(τ), a scalar. Each
    process of a group calls it with its own rows, of which it may have any number; each gets the
    loss of the whole batch. DDP's mean of the gradients then equals the gradient of a single
    process, for the scale too. Computed in fp32 (fp64 for fp64 input). Raises ValueError when the
    shapes differ.
    """
    return clip_loss_and_top1(image, text, logit_scale)[0]


def siglip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """SigLIP's loss of n pairs: as `clip_loss`, with the scalars exp(t') and b."""
    return siglip_loss_and_top1(image, text, logit_scale, logit_bias)[0]


def clip_loss_and_top1(
    image: Tensor, text: Tensor, scale: Tensor, *, block: int = BLOCK, kept: int = KEPT
) -> tuple[Tensor, Tensor]:
    """(`clip_loss`, share of images whose own text has the largest logit).

    The share has no gradient. `block` logits are computed at a time, `kept` of them are stored for
    the gradient.
    """
    return _apply(_clip_blocks, (block, kept), image, text, scale)


def siglip_loss_and_top1(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """(`siglip_loss`, share of images whose own text has the largest logit).

    The share has no gradient. `block` logits are computed at a time.
    """
    return _apply(_siglip_blocks, (block,), image, text, scale, bias)


# ---------------------------------------------------------------- a loss with its gradient

Result = tuple[Tensor, Tensor, tuple[Tensor, ...]]
"""(loss, top1, gradient of each input)"""


def _apply(loss: Callable[..., Result], sizes: tuple[int, ...], *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, top1) of image, text, scale and perhaps bias, computed in fp32 at least."""
    image, text, *_ = inputs
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be (n, d), got {tuple(image.shape)} and {tuple(text.shape)}")
    # Not in half precision: at a scale of 100 it would round the logits.
    dtype = reduce(torch.promote_types, [x.dtype for x in inputs], torch.float32)
    with no_autocast(image.device):
        image, text, *scalars = (x.to(dtype) for x in inputs)
        unit = (F.normalize(x, dim=1) for x in (image, text))
        return _WithGradient.apply(loss, sizes, *unit, *scalars)  # type: ignore[no-any-return]


class _WithGradient(torch.autograd.Function):
    """Computes the gradient with the loss, while logits are at hand; `backward` only scales it."""

    @staticmethod
    def forward(ctx: Any, loss: Callable[..., Result], sizes: tuple[int, ...], *inputs: Tensor) -> Any:  # type: ignore[override]
        value, top1, gradient = loss(*inputs, *sizes, any(ctx.needs_input_grad))
        ctx.mark_non_differentiable(top1)
        ctx.save_for_backward(*gradient)
        return value, top1

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:  # type: ignore[override]
        return None, None, *(grad * part for part in ctx.saved_tensors)


def _row_blocks(rows: int, columns: int, block: int) -> Iterator[slice]:
    """Slices of rows that hold at most `block` entries each, or one row."""
    step = max(1, block // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _all_texts(text: Tensor) -> tuple[Tensor, slice, Tensor]:
    """(texts of all processes (N, d), which of them are our own, the same as places (n, 1))."""
    counts = distributed.row_counts(text)
    first = sum(counts[: distributed.rank()])
    ours = slice(first, first + len(text))
    return distributed.gather(text, counts), ours, torch.arange(ours.start, ours.stop, device=text.device)[:, None]


# ---------------------------------------------------------------- CLIP


def _clip_blocks(image: Tensor, text: Tensor, scale: Tensor, block: int, keep: int, with_gradient: bool) -> Result:
    """`dense_clip_loss` in two passes over blocks of rows.

    With r_i = log Σ_j exp(s_ij) and c_j = log Σ_i exp(s_ij) for the logits s of N pairs

        L = 1/2N Σ_i (r_i + c_i − 2 s_ii)
        ∂L/∂s_ij = 1/2N (exp(s_ij − r_i) + exp(s_ij − c_j) − 2 [i = j])

    so the first pass finds r and c, the second one the gradient.
    """
    texts, ours, own = _all_texts(text)
    n, total = len(image), len(texts)
    scaled = image * scale  # n d
    narrow = _is_narrow(image, texts, scale)

    # First pass: r row by row, and c over all blocks as log Σ exp(s - peak) + peak, the peak being
    # the largest logit of a column so far.
    rows, hits, kept = image.new_zeros(n), image.new_zeros(()), []
    peak, mass = image.new_full((total,), 0.0 if narrow else -torch.inf), image.new_zeros(total)
    for part in _row_blocks(n, total, block):
        logits = scaled[part] @ texts.T  # rows N
        top = logits.amax(1)  # rows
        hits += (logits.gather(1, own[part])[:, 0] >= top).sum()
        if narrow:
            # No logit overflows or underflows, so one exponential serves rows and columns.
            logits.exp_()
            rows[part] = logits.sum(1).log_()
            mass += logits.sum(0)
        else:
            rows[part] = (logits - top[:, None]).exp_().sum(1).log_().add_(top)
            higher = torch.maximum(peak, logits.amax(0))
            mass, peak = mass * (peak - higher).exp() + (logits - higher).exp_().sum(0), higher
        if with_gradient and part.stop * total <= keep:
            kept.append(logits)

    # Each process saw the columns through its own images; together they give c.
    columns = distributed.gather((peak + mass.log())[None], [1] * distributed.world_size()).logsumexp(0)  # N
    positives = (scaled * texts[ours]).sum(1)
    parts = torch.stack([(rows + columns[ours] - 2 * positives).sum() / 2, hits])
    loss, top1 = distributed.all_reduce_sum(parts) / total
    if not with_gradient:
        return loss, top1, ()

    # Second pass, on the kept logits as far as they go. Of narrow ones the exponentials were kept.
    d_image, d_texts, d_scale = torch.empty_like(scaled), torch.zeros_like(texts), scaled.new_zeros(())
    for number, part in enumerate(_row_blocks(n, total, block)):
        stored = number < len(kept)
        logits = kept[number] if stored else scaled[part] @ texts.T
        if narrow:
            slope = (logits if stored else logits.exp_()).mul_((-rows[part, None]).exp() + (-columns).exp())
        else:
            slope = (logits - rows[part, None]).exp_().add_(logits.sub_(columns).exp_())
        slope.scatter_add_(1, own[part], slope.new_full(own[part].shape, -2))  # 2N ∂L/∂s, rows N
        d_image[part] = slope @ texts
        d_scale += (d_image[part] * scaled[part]).sum()
        d_texts.addmm_(slope.T, scaled[part])
    # Other processes' images see our texts too.
    unit = distributed.world_size() / (2 * total)  # DDP divides by the number of processes
    d_text = distributed.all_reduce_sum(d_texts)[ours]
    return loss, top1, (d_image.mul_(unit * scale), d_text.mul_(unit), d_scale * unit / scale)


def _is_narrow(image: Tensor, texts: Tensor, scale: Tensor) -> bool:
    """Whether every logit lies within ±NARROW, so that no peak need be taken away.

    Unit vectors under a scale of at most NARROW do. The answer needs values, so it is False in a
    compiled graph and for tensors without data.
    """
    if torch.compiler.is_compiling() or image.is_meta:
        return False
    return bool(scale.abs() * image.norm(dim=1).amax() * texts.norm(dim=1).amax() <= NARROW)


# ---------------------------------------------------------------- SigLIP


def _siglip_blocks(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, block: int, with_gradient: bool) -> Result:
    """`dense_siglip_loss` in one pass: a logit's slope σ(s_ij) − [i = j] needs no other logit."""
    texts, ours, own = _all_texts(text)
    n, total = len(image), len(texts)
    loss, hits, d_bias = (image.new_zeros(()) for _ in range(3))
    d_image, d_texts = torch.zeros_like(image), torch.zeros_like(texts)
    for part in _row_blocks(n, total, block):
        logits = (image[part] @ texts.T).mul_(scale).add_(bias)  # rows N
        positive = logits.gather(1, own[part])
        # On the diagonal log σ(s) = log σ(−s) + s. softplus would be linear, not exact, from 20 on.
        loss -= F.logsigmoid(-logits).sum() + positive.sum()
        hits += (positive >= logits.amax(1, keepdim=True)).sum()
        if with_gradient:
            slope = logits.sigmoid_().scatter_add_(1, own[part], -torch.ones_like(positive))  # rows N
            d_bias += slope.sum()
            d_image[part] = slope @ texts
            d_texts += slope.T @ image[part]
    loss, top1 = distributed.all_reduce_sum(torch.stack([loss, hits])) / total
    if not with_gradient:
        return loss, top1, ()
    # Other processes' images see our texts too.
    unit = distributed.world_size() / total  # DDP divides by the number of processes
    d_scale = (d_image * image).sum() * unit
    d_text = distributed.all_reduce_sum(d_texts)[ours]
    return loss, top1, (d_image * (unit * scale), d_text * (unit * scale), d_scale, d_bias * unit)
