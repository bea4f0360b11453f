"""CLIP's ResNet (section 2.4 of the paper, arXiv 2103.00020), under OpenAI's parameter names.

A ResNet-D: three stem convolutions, and an average pool in front of what has a stride. Attention
replaces the last average pool.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_clip.config import RESNET_STRIDE, CLIPConfig
from ssl_core.batch_norm import BatchNorm
from ssl_core.patches import PosInterp, interpolate_positions
from ssl_core.vit import attention

EXPANSION = 4


class Bottleneck(nn.Module):
    """x + three convolutions, of which the middle one is `width` wide."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.bn3 = BatchNorm(EXPANSION * width)
        nn.init.zeros_(self.bn3.weight)  # the branch adds nothing at first
        self.stride = stride
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != EXPANSION * width:
            convolution = nn.Conv2d(inputs, EXPANSION * width, 1, bias=False)
            self.downsample = nn.Sequential(convolution, BatchNorm(EXPANSION * width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        # An average pool has the stride, here and in the shortcut, so that no pixel is skipped.
        out = self.bn3(self.conv3(self._pooled(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(self._pooled(x))))

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """The mean of a map's cells asks all cells; `c_proj` goes into the common space."""

    def __init__(self, grid: tuple[int, int], dim: int, heads: int, out: int, pos_interp: PosInterp) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        self.pos_interp: PosInterp = pos_interp
        self.positional_embedding = nn.Parameter(torch.randn(1 + grid[0] * grid[1], dim) * dim**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.c_proj = nn.Linear(dim, out)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, d) -> (b, out)."""
        grid = (x.shape[1], x.shape[2])
        x = rearrange(x, "b h w d -> b (h w) d")  # b hw d
        pos = interpolate_positions(self.positional_embedding[None], self.grid, grid, self.pos_interp)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + pos.to(x.dtype)  # b 1+hw d
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)  # only the mean asks
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (q, k, v))
        return self.c_proj(rearrange(attention(q, k, v), "b h 1 d -> b (h d)"))  # b out


class ResNetTower(nn.Module):
    """Images (b, c, h, w), sides divisible by 32 -> (b, embed_dim), projected."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.dim
        self.conv1 = nn.Conv2d(config.in_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = BatchNorm(width)
        # Stages, of which all but the first halve the map in their first block.
        inputs = width
        for number, blocks in enumerate(config.stages):
            planes = width * 2**number
            first = Bottleneck(inputs, planes, 2 if number else 1)
            inputs = EXPANSION * planes
            others = (Bottleneck(inputs, planes, 1) for _ in range(blocks - 1))
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *others))
        self.attnpool = AttentionPool(config.grid, inputs, config.heads, config.embed_dim, config.pos_interp)

    def forward(self, images: Tensor) -> Tensor:
        return self.attnpool(self.patch_features(images))

    def patch_features(self, images: Tensor) -> Tensor:
        """The last map, before the attention pool, (b, h / 32, w / 32, d)."""
        if any(side % RESNET_STRIDE for side in images.shape[2:]):
            raise ValueError(f"sides {tuple(images.shape[2:])} must be divisible by {RESNET_STRIDE}")
        x = images.to(self.conv1.weight.dtype).contiguous(memory_format=torch.channels_last)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)  # b width h/4 w/4
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return rearrange(x, "b d h w -> b h w d")
