"""A masked autoencoder straight from the paper (arXiv 2111.06377), on timm's blocks, not optimised.

A convolution embeds all patches, and the removed ones are dropped afterwards. The decoder predicts
every patch, and the mask selects their losses. The parameters have our names, so our weights load.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_mae.config import MAEConfig


class PlainEncoder(nn.Module):
    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        p = config.patch_size
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(config.in_channels, config.dim, p, stride=p)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.dim), requires_grad=False)
        self.blocks = blocks(config, config.dim, config.heads, config.depth)
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, images: Tensor, keep: Tensor) -> Tensor:
        """Images (b, c, h, w), ids (b, k) -> (b, 1 + k, d)."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # b n d
        x = x + self.pos_embed[:, 1:]
        x = torch.gather(x, 1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.blocks(torch.cat([cls, x], 1)))


class PlainDecoder(nn.Module):
    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.embed = nn.Linear(config.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, dim), requires_grad=False)
        self.blocks = blocks(config, dim, config.decoder_heads, config.decoder_depth)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.pred = nn.Linear(dim, config.patch_size**2 * config.in_channels)

    def forward(self, x: Tensor, restore: Tensor) -> Tensor:
        """Tokens (b, 1 + k, d), ids (b, n) -> pixels of all patches (b, n, p·p·c)."""
        x = self.embed(x)
        holes = self.mask_token.repeat(len(x), restore.shape[1] + 1 - x.shape[1], 1)
        patches = torch.cat([x[:, 1:], holes], 1)
        patches = torch.gather(patches, 1, restore.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], 1) + self.pos_embed
        return self.pred(self.norm(self.blocks(x)))[:, 1:]


class PlainMAE(nn.Module):
    """Loss of normalised images (b, c, h, w) under the mask that `noise` (b, n) sorts."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = PlainEncoder(config), PlainDecoder(config)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        shuffle = torch.argsort(noise, dim=1)
        restore = torch.argsort(shuffle, dim=1)
        pred = self.decoder(self.encoder(images, shuffle[:, : self.config.kept]), restore)
        p = self.config.patch_size
        target = rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        if self.config.norm_pix_loss:
            mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (var + 1e-6).sqrt()
        mask = torch.ones_like(noise)
        mask[:, : self.config.kept] = 0
        mask = torch.gather(mask, 1, restore)
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def blocks(config: MAEConfig, dim: int, heads: int, depth: int) -> nn.Sequential:
    from timm.models.vision_transformer import Block

    norm: Any = partial(nn.LayerNorm, eps=config.layer_norm_eps)
    block = partial(Block, dim, heads, config.mlp_ratio, qkv_bias=True, norm_layer=norm)
    return nn.Sequential(*(block() for _ in range(depth)))
