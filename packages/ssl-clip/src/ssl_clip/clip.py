"""Learning Transferable Visual Models From Natural Language Supervision (CLIP, Radford et al. 2021, arXiv 2103.00020).

An image tower and a text tower map into one space, where an image and its own caption are nearest (figure 3):

    s_ij = exp(τ) · x_i·y_j,    x, y L2-normalised
    L = ½ (1/n Σ_i −log softmax_j(s_ij)_i + 1/n Σ_j −log softmax_i(s_ij)_j)

τ is learned, starts at ln(1/0.07) and is kept at or below ln 100 (section 2.5); `loss="siglip"` replaces L by the
sigmoid loss of `ssl_clip.siglip`.

Computed otherwise than in open_clip, with the same result: the n × n logits are never stored. One pass over blocks
of rows finds log-sum-exp of rows and columns, a second one the gradient. Processes share texts and column sums only, so
that each block of logits is computed by one of them, once.
Accumulation is gradient caching (Gao et al. 2021, arXiv 2101.06983): the features of all micro-batches make one loss,
and a micro-batch's activations are computed again when its gradient is asked for.

Deviation: both towers start by the rule that the paper's code has for the text tower; it leaves vision blocks at
PyTorch's defaults. Expected (the paper, table 11): ViT-B/32, B/16, L/14 63.2, 68.3, 75.3 % zero-shot on ImageNet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_core import distributed
from ssl_clip.pairwise import all_rows, check_pairs, exact, own_rows, row_blocks

KEPT = 2**25
"""Logits that are kept from the first pass for the second, 128 MB in fp32; those of further rows are computed again."""
NARROW = 60.0
"""exp(±60) and sums of millions of them are normal numbers in fp32."""


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric loss of n pairs: `image` and `text` (n, d), row i of one belonging to row i of the other.

    `logit_scale` is exp(τ), a scalar. Called by every process of a group, each with as many rows as it has, it gives
    all of them the loss of the whole batch, and DDP's mean of the gradients, of the scale too, is the gradient of one
    process. Computed in fp32 (fp64 for fp64 input). Raises ValueError when the shapes differ.
    """
    return clip_statistics(image, text, logit_scale)[0]


def clip_statistics(image: Tensor, text: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, share of images whose own text has the largest logit); the share has no gradient."""
    check_pairs(image, text)
    with torch.autocast(image.device.type, enabled=False):
        return _CLIPLoss.apply(*exact(image, text, logit_scale))  # type: ignore[no-any-return]


class _CLIPLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        texts, first = all_rows(text)
        n, total = image.shape[0], texts.shape[0]
        scaled, narrow = image * scale, _is_narrow(image, texts, scale)
        rows, hits, kept = image.new_zeros(n), image.new_zeros(n), []
        peak, mass = image.new_full((total,), 0.0 if narrow else -torch.inf), image.new_zeros(total)  # of columns
        for start, stop in row_blocks(n, total):
            logits = scaled[start:stop] @ texts.T
            top = logits.amax(1)
            own = torch.arange(first + start, first + stop, device=image.device)[:, None]
            hits[start:stop] = (logits.gather(1, own)[:, 0] >= top).to(hits.dtype)
            if not narrow:
                rows[start:stop] = (logits - top[:, None]).exp_().sum(1).log_().add_(top)
                higher = torch.maximum(peak, logits.amax(0))
                mass, peak = mass * (peak - higher).exp() + (logits - higher).exp_().sum(0), higher
            else:
                logits.exp_()
                rows[start:stop] = logits.sum(1).log_()
                mass += logits.sum(0)
            if any(ctx.needs_input_grad) and stop * total <= KEPT:
                kept.append(logits)
        columns = distributed.gather((peak + mass.log())[None]).logsumexp(0)
        positives = (scaled * texts[first : first + n]).sum(1)
        parts = torch.stack([(rows + columns[first : first + n] - 2 * positives).sum() / 2, hits.sum()])
        loss, share = distributed.all_reduce_sum(parts) / total
        ctx.mark_non_differentiable(share)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*_gradient(scaled, texts, scale, rows, columns, first, kept, narrow))
        return loss, share

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(grad * part for part in ctx.saved_tensors)


def _is_narrow(image: Tensor, texts: Tensor, scale: Tensor) -> bool:
    """Whether every logit is small enough for sums of its exponential: then one exponential serves rows and columns.

    Unit vectors under a scale of at most NARROW are. A compiled graph does not ask.
    """
    if torch.compiler.is_compiling():
        return False
    return bool(scale.abs() * image.norm(dim=1).amax() * texts.norm(dim=1).amax() <= NARROW)


def _gradient(
    scaled: Tensor, texts: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, first: int,
    kept: list[Tensor], narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of own images, own texts and the scale, from the log-sum-exp of rows (n,) and columns (n_total,).

    `scaled` are the own images times the scale, `kept` the first blocks: logits, or where they are `narrow` their
    exponentials.
    """
    n, total = scaled.shape[0], texts.shape[0]
    d_image, d_texts, d_scale = torch.empty_like(scaled), torch.zeros_like(texts), scaled.new_zeros(())
    for block, (start, stop) in enumerate(row_blocks(n, total)):
        stored = block < len(kept)
        logits = kept[block] if stored else scaled[start:stop] @ texts.T
        if narrow:
            slope = (logits if stored else logits.exp_()).mul_((-rows[start:stop, None]).exp() + (-columns).exp())
        else:
            slope = (logits - rows[start:stop, None]).exp_().add_(logits.sub_(columns).exp_())
        own = torch.arange(first + start, first + stop, device=scaled.device)[:, None]
        slope.scatter_add_(1, own, slope.new_full(own.shape, -2))
        d_image[start:stop] = slope @ texts
        d_scale += (d_image[start:stop] * scaled[start:stop]).sum()
        d_texts.addmm_(slope.T, scaled[start:stop])
    unit = distributed.world_size() / (2 * total)  # DDP divides by the number of processes
    return d_image.mul_(unit * scale), own_rows(d_texts, n, first).mul_(unit), d_scale * unit / scale
