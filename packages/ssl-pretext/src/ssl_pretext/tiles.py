"""What jigsaw puzzles and relative patch location share: nine tiles of a square, each seen alone."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_core.encoder import PooledViT
from ssl_core.pixels import as_float
from ssl_core.resnet import ResNet

TILES = 9


def standardize_tiles(tiles: Tensor) -> Tensor:
    """Every channel of every tile (…, c, h, w) to mean 0 and standard deviation 1; a constant one to 0.

    uint8, uint16 or float; the brightness and contrast that neighbours share would else solve the task.
    """
    pixels = as_float(tiles)
    var, mean = torch.var_mean(pixels, (-2, -1), correction=0, keepdim=True)
    # a constant tile's variance is a rounding error, far below that of one grey level in one pixel
    return (pixels - mean) * torch.where(var > 1e-9, var, torch.inf).rsqrt()


def embed_tiles(encoder: PooledViT | ResNet, project: nn.Module, tiles: Tensor) -> Tensor:
    """Standardised tiles (b, t, c, h, w) through the encoder in one call, and to their embedding: (b, t, d)."""
    features = project(encoder(rearrange(standardize_tiles(tiles), "b t c h w -> (b t) c h w")))
    return rearrange(features, "(b t) d -> b t d", b=len(tiles))


def check_tiles(tiles: Tensor, *leading: int) -> None:
    """Raises ValueError unless `tiles` are (b, *leading, h, w)."""
    if tiles.ndim != 3 + len(leading) or tuple(tiles.shape[1:-2]) != leading:
        raise ValueError(f"tiles must be (b, {', '.join(map(str, leading))}, h, w), got {tuple(tiles.shape)}")
