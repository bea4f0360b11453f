"""Attention maps and patch features as pictures.

The masks are those of DINO (arXiv 2104.14294, section 4.2.2), the colours those of DINOv2 (arXiv
2304.07193, section 7.5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


def mass_mask(maps: Tensor, mass: float) -> Tensor:
    """The smallest sets of patches that hold `mass` of the attention, for maps (…, h, w): bool.

    Sorted ascending, a patch stays where the cumulative share exceeds 1 − mass (the authors'
    `visualize_attention.py`).
    """
    values, order = maps.flatten(-2).sort(-1)  # … h·w
    kept = values.cumsum(-1) / values.sum(-1, keepdim=True) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept).view(maps.shape)


def overlay(images: Tensor, mask: Tensor, dim: float = 0.25) -> Tensor:
    """Images (b, c, h, w), the patches outside a mask (b, 1, h', w') dimmed to `dim`."""
    kept = F.interpolate(mask.to(images.dtype), images.shape[-2:])
    return images * (dim + (1 - dim) * kept)


def heat(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Attention maps (b, 1, h', w') as grey pictures (b, 3, *size), each with maximum 1."""
    return repeat(F.interpolate(maps / maps.amax((2, 3), keepdim=True), size), "b 1 h w -> b c h w", c=3)


def pca_colours(features: Tensor) -> Tensor:
    """The first three principal components of patch features (b, h, w, d) as colours (b, 3, h, w).

    The components are those of all patches together. Each is stretched from its 1st to its 99th
    percentile, so colours lie in [0, 1]. The sign of a component is arbitrary: here its largest
    coefficient is positive.
    """
    b, h, w, _ = features.shape
    rows = rearrange(features.float(), "b h w d -> (b h w) d")
    rows = rows - rows.mean(0)
    _, axes = torch.linalg.eigh(rows.T @ rows)
    axes = axes[:, -3:].flip(1)  # d 3, largest variance first
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))  # 1 3
    scores = rows @ (axes * largest.sign())  # b·h·w 3

    # Percentiles and not extremes, because a single odd patch would dim all others.
    low, high = scores.quantile(torch.tensor([0.01, 0.99], device=rows.device), 0)
    colours = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)

    # Features of fewer than three dimensions leave channels black.
    colours = F.pad(colours, (0, 3 - colours.shape[1]))
    return rearrange(colours, "(b h w) c -> b c h w", b=b, h=h, w=w)


def correspondences(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """For each patch of `first` (h, w, d) the most similar one of `second` (h', w', d) by cosine.

    Returns (its (row, column), (h, w, 2) long; whether it in turn points back, (h, w) bool).
    """
    a, b = (F.normalize(x.float().flatten(0, 1), dim=-1) for x in (first, second))
    similar = a @ b.T  # h·w h'·w'
    there, back = similar.argmax(1), similar.argmax(0)
    mutual = back[there] == torch.arange(len(a), device=a.device)
    places = torch.stack([there // second.shape[1], there % second.shape[1]], -1)  # h·w 2
    return places.view(*first.shape[:2], 2), mutual.view(first.shape[:2])
