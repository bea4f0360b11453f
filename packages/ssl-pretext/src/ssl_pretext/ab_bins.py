"""Colours as classes: the ab plane of Lab in cells, after Zhang, Isola and Efros 2016 (arXiv
1603.08511, section 2).

    `ab_bins`        cells of 10 x 10 that sRGB reaches: Q of them
    `soft_encode`    Z_q ∝ exp(-‖ab - c_q‖² / 2σ²) over the k nearest cells c_q, σ = 5; Σ_q Z_q = 1
    `rebalancing`    w_q ∝ 1 / ((1 - λ)·p̃_q + λ/Q), Σ_q p̃_q·w_q = 1, p̃ the smoothed prior
    `annealed_mean`  ab = Σ_q c_q · softmax(z / T)_q; T = 1 is the mean, T → 0 the mode, ours .38

Q is 313 in the authors' file, and no rule that they state gives this number. 261 cells hold a
colour of sRGB: those are ours.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ssl_pretext.lab import rgb_to_lab


def ab_bins(step: float = 10.0) -> Tensor:
    """Centres (Q, 2) of the cells of side `step` in which some colour of sRGB lies; fp32.

    They are sorted by a, then by b.
    """
    return torch.tensor(_centres(step), dtype=torch.float32)


@cache
def _centres(step: float) -> list[list[float]]:
    """The bins, as plain numbers."""
    # The surface of the RGB cube is enough: a colour inside it can be made lighter, at the same a
    # and b, until it lies on the surface.
    levels = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    square = torch.cartesian_prod(levels, levels)  # 256² 2

    # On each of the six faces one channel is constant at an end.
    faces = [
        torch.stack([*square.T[:axis], torch.full_like(square[:, 0], end), *square.T[axis:]])
        for axis in range(3)
        for end in (0.0, 1.0)
    ]
    lab = rgb_to_lab(torch.cat(faces, 1)[None, :, :, None])  # 1 3 n 1
    cells = (lab[0, 1:, :, 0].T / step).round() + 0.0  # no -0
    return (cells.unique(dim=0) * step).tolist()


def soft_encode(ab: Tensor, bins: Tensor, neighbours: int = 10, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
    """Soft classes of colours ab (n, 2), as (bin ids (n, k), weights (n, k)).

    The bins are the `neighbours` nearest ones, nearest first.
    """
    # Through a matrix product the distance would lose digits.
    distance = torch.cdist(ab, bins, compute_mode="donot_use_mm_for_euclid_dist")
    near, ids = distance.topk(neighbours, largest=False)
    return ids, (-(near**2) / (2 * sigma**2)).softmax(1)


def smoothing(bins: Tensor, sigma: float = 5.0) -> Tensor:
    """Kernel (Q, Q), with rows that sum to 1. `prior @ kernel` spreads over neighbouring bins."""
    distance = torch.cdist(bins, bins, compute_mode="donot_use_mm_for_euclid_dist")
    return (-(distance**2) / (2 * sigma**2)).softmax(1)


def rebalancing(prior: Tensor, uniform: float = 0.5) -> Tensor:
    """Weight (Q,) of each bin for a smoothed prior (Q,), `uniform` of which is the uniform one."""
    weight = 1 / ((1 - uniform) * prior + uniform / len(prior))
    return weight / (prior * weight).sum()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """The colours ab (…, 2) that logits (…, Q) stand for; fp32."""
    return (logits.float() / temperature).softmax(-1) @ bins
