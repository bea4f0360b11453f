"""ResNets with torchvision's names and numbers: Deep Residual Learning (arXiv 1512.03385).

The stride of a bottleneck sits in its 3x3 convolution ("v1.5"), as in torchvision, timm and every
contrastive paper's code. `small_stem` is SimCLR's for small images (its appendix B.9): a 3x3
convolution of stride 1, padding 1, no max-pool.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _downsample(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _downsample(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if channels == out and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def _stage(block: type[BasicBlock | Bottleneck], inputs: int, width: int, depth: int, *, stride: int) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(depth - 1)))


class ResNet(nn.Module):
    """Encoder of images (b, c, h, w) of any size; `width` is the channels of the first stage (64 as
    published)."""

    def __init__(self, name: str, *, in_channels: int = 3, width: int = 64, small_stem: bool = False) -> None:
        super().__init__()
        block, depths = LAYERS[name]
        self.in_channels, self.small_stem = in_channels, small_stem
        self.features = 8 * width * block.expansion
        stem = (3, 1, 1) if small_stem else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, width, *stem, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width * 2**stage for stage in range(4)]
        inputs = [width, *(block.expansion * w for w in widths)]  # channels that a stage receives
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(block, inputs[i], widths[i], depths[i], stride=2 if i else 1) for i in range(4)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def zero_residuals(self) -> Self:
        """Start every residual branch at zero, as SimCLR, SimSiam and MoCo v3 do."""
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        return self

    def maps(self, images: Tensor, stage: int = 4) -> Tensor:
        """A stage's map: the last one's (b, d, h / 32, w / 32), h / 8 with the small stem, rounded
        up; a stage before has twice the height and width, and half of the channels."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must be (b, {self.in_channels}, h, w), got {tuple(images.shape)}")
        x = images.to(self.conv1.weight.dtype).contiguous(memory_format=torch.channels_last)  # faster to convolve
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if not self.small_stem:
            x = F.max_pool2d(x, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[:stage]:
            x = layer(x)
        return x

    def forward(self, images: Tensor, stage: int = 4) -> Tensor:
        """The mean of a stage's map, the last one's by default, (b, d)."""
        return reduce(self.maps(images, stage), "b d h w -> b d", "mean")

    def patch_features(self, images: Tensor) -> Tensor:
        """The last map, (b, h, w, d)."""
        return rearrange(self.maps(images), "b d h w -> b h w d")
