"""Sigmoid Loss for Language Image Pre-Training (SigLIP, Zhai et al. 2023, arXiv 2303.15343).

Every image with every text is a yes-or-no question of its own, so nothing is normalised over the batch:

    L = −1/n Σ_i Σ_j log σ(z_ij (t · x_i·y_j + b)),    z_ii = 1, z_ij = −1 elsewhere        (section 3, algorithm 1)

t = exp(t'), t' starts at ln 10: at first every pair is called a mismatch, as nearly all are.

The logits are computed in blocks of own images against the texts of all processes, and their gradient with them.
Deviation: b starts at the log odds of a match in the batch, −ln(n − 1), which is the paper's −10 at its batch of 32,768. From
−10, b takes thousands of steps to come up to where a small batch needs it, and till then all embeddings are pulled together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_clip.pairwise import all_rows, check_pairs, exact, full_precision, own_rows, row_blocks
from ssl_core import distributed


def siglip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """SigLIP's loss of n pairs: `image` and `text` (n, d), row i of one belonging to row i of the other.

    `logit_scale` is t, already exponentiated, `logit_bias` is b, both scalars. Called by every process of a group, each
    with as many rows as it has, it gives all of them the loss of the whole batch, and DDP's mean of the gradients, of
    scale and bias too, is the gradient of one process. Computed in fp32 (fp64 for fp64 input).
    Raises ValueError when the shapes differ.
    """
    return siglip_statistics(image, text, logit_scale, logit_bias)[0]


def siglip_statistics(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, share of images whose own text has the largest logit); the share has no gradient."""
    check_pairs(image, text)
    with full_precision(image.device):
        return _SigLIP.apply(*exact(image, text, logit_scale, logit_bias))  # type: ignore[no-any-return]


class _SigLIP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        texts, first = all_rows(text)
        n, total = image.shape[0], texts.shape[0]
        loss, hits, d_bias = (image.new_zeros(()) for _ in range(3))
        d_image, d_texts = torch.zeros_like(image), torch.zeros_like(texts)
        for start, stop in row_blocks(n, total):
            own = torch.arange(first + start, first + stop, device=image.device)[:, None]
            logits = (image[start:stop] @ texts.T).mul_(scale).add_(bias)  # rows of images, columns of texts
            positive = logits.gather(1, own)
            loss -= F.logsigmoid(-logits).sum() + positive.sum()  # softplus is linear, not exact, from 20 on
            hits += (positive >= logits.amax(1, keepdim=True)).sum()
            if any(ctx.needs_input_grad):
                slope = logits.sigmoid_().scatter_add_(1, own, -torch.ones_like(positive))
                d_bias += slope.sum()
                d_image[start:stop] = slope @ texts
                d_texts += slope.T @ image[start:stop]
        loss, hits = distributed.all_reduce_sum(torch.stack([loss, hits])) / total
        ctx.mark_non_differentiable(hits)
        if any(ctx.needs_input_grad):
            unit = distributed.world_size() / total  # DDP divides by the number of processes
            d_scale = (d_image * image).sum() * unit
            d_text = own_rows(d_texts, n, first)
            ctx.save_for_backward(d_image * (unit * scale), d_text * (unit * scale), d_scale, d_bias * unit)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(grad * part for part in ctx.saved_tensors)
