"""Images as sequences of patches, and the positions of those patches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ssl_core.config import PosInterp


def grid_of(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in `images` (b, c, h, w).

    Raises ValueError when a side is not divisible by `patch_size`.
    """
    h, w = images.shape[-2:]
    if h % patch_size or w % patch_size:
        near = "x".join(str(max(1, round(side / patch_size)) * patch_size) for side in (h, w))
        raise ValueError(f"image size {h}x{w} is not divisible by the patch size {patch_size}: resize to {near}")
    return h // patch_size, w // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(b, c, h, w) -> (b, n, p·p·c): row, column, channel inside a patch, channel fastest.

    This is the order of the targets and of the prediction head in MAE's checkpoints.
    """
    grid_of(images, patch_size)
    p = patch_size
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`: (b, n, p·p·c) -> (b, c, h, w) for a `grid` of (rows, columns)."""
    p, (h, w) = patch_size, grid
    if patches.shape[1] != h * w or patches.shape[2] % (p * p):
        raise ValueError(f"patches {tuple(patches.shape)} do not fit a {h}x{w} grid of {p}-pixel patches")
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of `x` (b, n, d) that `index` (b, k) names, in its order: (b, k, d)."""
    return x.gather(1, repeat(index, "b k -> b k d", d=x.shape[2]))


def sincos_positions(grid: tuple[int, int], dim: int, *, cls: bool = True) -> Tensor:
    """Fixed 2-D sin-cos positions, (1, n, dim) or, with a leading row of zeros for CLS, (1, 1 + n,
    dim).

    A patch at (row, col) holds [sin col·ω, cos col·ω, sin row·ω, cos row·ω] with
    ω_i = 10000^(-4i/dim): the column fills the first half (MAE, arXiv 2111.06377, appendix A.1).
    Raises ValueError unless `dim` is divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, got {dim}")
    h, w = grid
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows = torch.outer(torch.arange(h, dtype=torch.float64), omega)
    cols = torch.outer(torch.arange(w, dtype=torch.float64), omega)
    rows = repeat(torch.cat([rows.sin(), rows.cos()], 1), "h d -> (h w) d", w=w)
    cols = repeat(torch.cat([cols.sin(), cols.cos()], 1), "w d -> (h w) d", h=h)
    pos = torch.cat([cols, rows], 1)  # n d
    if cls:
        pos = torch.cat([pos.new_zeros(1, dim), pos])
    return pos.float().unsqueeze(0)


def interpolate_positions(
    pos: Tensor, old: tuple[int, int], new: tuple[int, int], how: PosInterp, *, prefix: int = 1
) -> Tensor:
    """Positions of an `old` grid resampled to a `new` one: (1, prefix + n, d) -> (1, prefix + n',
    d).

    Published models resample in three ways that do not agree, so a config names its own:
    "offset" (DINO, DINOv2: bicubic by the scale factor (n + 0.1) / m), "size" (MAE, DeiT,
    transformers: bicubic to the size), "antialias" (DINOv2 with registers, timm: the same with
    antialiasing). `prefix` rows (CLS, registers) are kept as they are. Computed in float32 or
    wider.
    """
    if (how == "offset" or isinstance(new[0], int)) and old == new:  # a size that is traced is not known
        return pos
    head, patches = pos[:, :prefix], pos[:, prefix:]
    wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
    patches = rearrange(wide, "1 (h w) d -> 1 d h w", h=old[0], w=old[1])
    if how == "offset":
        scale = [(n + 0.1) / m for n, m in zip(new, old, strict=True)]
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    else:
        patches = F.interpolate(patches, size=new, mode="bicubic", antialias=how == "antialias")
    return torch.cat([head, rearrange(patches, "1 d h w -> 1 (h w) d").to(pos.dtype)], 1)


def square_grid(n: int) -> tuple[int, int]:
    """The square grid of `n` patches; ValueError when there is none."""
    side = math.isqrt(n)
    if side * side != n:
        raise ValueError(f"{n} patches do not form a square grid: give image_size")
    return side, side
