"""Unsupervised Representation Learning by Predicting Image Rotations (Gidaris et al. 2018).

arXiv 1803.07728. Every image is shown turned by 0, 90, 180 and 270 degrees, and a classifier says
which turn it was: whoever can tell has to know what is up in a picture.

    L = -1/4 · Σ_y log p_y(rot(x, y · 90°)), mean over images                 (equations 2, 3)

Deviation: a ViT in place of the paper's convolutional networks, so its figures do not carry over.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import normalize
from ssl_core.vit import ViT
from ssl_template.config import RotNetConfig


def four_rotations(images: Tensor) -> Tensor:
    """Square images (b, c, s, s) at 0, 90, 180 and 270 degrees, in this order: (4·b, c, s, s)."""
    return torch.cat([torch.rot90(images, turns, (-2, -1)) for turns in range(4)])


def rotation_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (4·b, 4) that belong to `four_rotations`; fp32."""
    turns = torch.arange(4, device=logits.device).repeat_interleave(logits.shape[0] // 4)
    return F.cross_entropy(logits.float(), turns)


class RotNet(nn.Module, Pretrained):
    """A ViT and a linear classifier of four rotations, built from a `RotNetConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std.
    """

    config_class = RotNetConfig
    accumulates = True

    def __init__(self, config: RotNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViT(
            image_size=config.size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            pos_interp=config.pos_interp,
        )
        nn.init.trunc_normal_(self.encoder.pos_embed, std=0.02)
        self.head = nn.Linear(config.dim, 4)

    @classmethod
    def layout(cls) -> Layout:
        from ssl_template.convert import LAYOUT

        return LAYOUT

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss and accuracy of the four rotations of `batch["views"][0]`."""
        logits = self.head(self.encode(four_rotations(batch["views"][0])))
        turns = logits.argmax(1).view(4, -1)  # 4 b
        right = turns == torch.arange(4, device=turns.device)[:, None]
        return {"loss": rotation_loss(logits), "accuracy": right.float().mean()}

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d): the mean of the patch tokens."""
        return self.encoder(normalize(images, self.config.mean, self.config.std))[:, 1:].mean(1)
