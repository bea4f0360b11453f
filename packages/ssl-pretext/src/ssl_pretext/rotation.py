"""Unsupervised Representation Learning by Predicting Image Rotations (Gidaris et al. 2018, arXiv
1803.07728).

Every image is shown turned by 0, 90, 180 and 270 degrees, and a classifier says which turn it was.
To answer, it has to know what is up in a picture.

    L = -1/4 · Σ_y log p_y(rot(x, y · 90°)), mean over images                 (equations 2, 3)

All four turns of an image are in the same step. They are `rot90` of one square crop, so nothing is
interpolated, no corner is left black and the crop keeps its aspect. Each of these would give the
answer away without a look at the picture.

Deviations: any of our encoders in place of the paper's network in network and AlexNet; a cosine in
place of steps.

Expected (VISSL): ResNet-50 on ImageNet 48.2 % in the linear probe.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.batch_norm import sync_batch_norm
from ssl_core.device import wide
from ssl_core.encoder import build_encoder
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import moved
from ssl_pretext.config import RotationConfig
from ssl_pretext.stage import StageEncoder


def rotation_loss(logits: Tensor) -> Tensor:
    """Equation 2 for logits (4·b, 4) of `four_rotations`, scalar; at least fp32."""
    return F.cross_entropy(wide(logits), turns_of(logits))


def turns_of(logits: Tensor) -> Tensor:
    """The answers (4·b,) to `four_rotations`: b zeros, b ones, b twos, b threes."""
    return torch.arange(4, device=logits.device).repeat_interleave(len(logits) // 4)


def four_rotations(images: Tensor) -> Tensor:
    """Square images (b, c, s, s) at 0, 90, 180 and 270 degrees, in this order: (4·b, c, s, s)."""
    return torch.cat([rotate(images, turns) for turns in range(4)])


def rotate(images: Tensor, turns: int) -> Tensor:
    """Square images (…, s, s) by `turns` quarter turns counter-clockwise, exactly.

    `rotate(rotate(x, k), 4 - k)` is x. Raises ValueError for images that are not square: the shape
    of an oblong would show its quarter turn.
    """
    if images.shape[-2] != images.shape[-1]:
        raise ValueError(f"images must be square to be turned, got {tuple(images.shape)}: crop a square first")
    return moved(images, lambda pixels: torch.rot90(pixels, turns, (-2, -1)))


class Rotation(nn.Module, StageEncoder, Pretrained):
    """An encoder and a linear classifier of four rotations, built from a `RotationConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std.
    """

    config_class = RotationConfig
    layout = "ssl_pretext.convert:LAYOUTS[rotation]"

    def __init__(self, config: RotationConfig) -> None:
        super().__init__()
        self.config = config
        self.accumulates = config.is_vit  # batch norm spans the batch
        self.encoder = build_encoder(config)
        self.head = nn.Linear(self.encoder.features, 4)  # reads the last stage, whatever `encode` reads
        sync_batch_norm(self)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss and accuracy over the four rotations of `batch["views"][0]`, square (b, c, s, s)."""
        turned = four_rotations(self.normalized(batch["views"][0]))  # 4·b c s s
        logits = self.head(self.encoder(turned))  # 4·b 4
        right = logits.argmax(1) == turns_of(logits)
        return {"loss": rotation_loss(logits), "accuracy": right.float().mean()}

    def logits(self, images: Tensor) -> Tensor:
        """Scores (b, 4) of turns by 0, 90, 180 and 270 degrees counter-clockwise."""
        return self.head(self.encoder(self.normalized(images)))
