"""What jigsaw puzzles and relative patch location share: nine tiles, each seen alone."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_core.encoder import PooledViT
from ssl_core.pixels import as_float
from ssl_core.resnet import ResNet

TILES = 9


def standardize_tiles(tiles: Tensor) -> Tensor:
    """Every channel of every tile (…, c, h, w) to mean 0 and standard deviation 1.

    A constant channel becomes 0. Tiles are uint8, uint16 or float. Without this, the brightness and
    contrast that neighbours share would solve the task.
    """
    pixels = as_float(tiles)
    var, mean = torch.var_mean(pixels, (-2, -1), correction=0, keepdim=True)  # … c 1 1
    # A constant tile has the variance of a rounding error, far below one grey level in one pixel.
    return (pixels - mean) * torch.where(var > 1e-9, var, torch.inf).rsqrt()


def layer(features: int, width: int) -> tuple[nn.Module, ...]:
    """A layer of the heads of Goyal et al. 2019 (arXiv 1905.01235): (n, features) -> (n, width)."""
    return nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)


def embed_tiles(encoder: PooledViT | ResNet, embed: nn.Module, tiles: Tensor) -> Tensor:
    """Embeddings (b, t, d) of tiles (b, t, c, h, w), standardised, from one call of the encoder."""
    each = rearrange(standardize_tiles(tiles), "b t c h w -> (b t) c h w")
    features = embed(encoder(each))  # b·t d
    return rearrange(features, "(b t) d -> b t d", b=len(tiles))


def check_tiles(tiles: Tensor, *leading: int) -> None:
    """Raises ValueError unless `tiles` are (b, *leading, h, w)."""
    if tiles.ndim != 3 + len(leading) or tuple(tiles.shape[1:-2]) != leading:
        raise ValueError(f"tiles must be (b, {', '.join(map(str, leading))}, h, w), got {tuple(tiles.shape)}")
