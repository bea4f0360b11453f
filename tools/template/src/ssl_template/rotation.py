"""Unsupervised Representation Learning by Predicting Image Rotations (Gidaris et al. 2018).

arXiv 1803.07728. Every image is shown turned by 0, 90, 180 and 270 degrees, and a classifier says
which turn it was: whoever can tell has to know what is up in a picture.

    L = -1/4 · Σ_y log p_y(rot(x, y · 90°)), mean over images                 (equations 2, 3)

Deviation: any of our encoders in place of the paper's networks, so its figures do not carry over.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.batch_norm import sync_batch_norm
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.hub.pretrained import Pretrained
from ssl_template.config import RotNetConfig


def rotation_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (4·b, 4) that belong to `four_rotations`, a scalar; fp32."""
    turns = torch.arange(4, device=logits.device).repeat_interleave(logits.shape[0] // 4)
    return F.cross_entropy(logits.float(), turns)


def four_rotations(images: Tensor) -> Tensor:
    """Square images (b, c, s, s) at 0, 90, 180 and 270 degrees, in this order: (4·b, c, s, s)."""
    return torch.cat([torch.rot90(images, turns, (-2, -1)) for turns in range(4)])


class RotNet(nn.Module, ImageEncoder, Pretrained):
    """An encoder and a linear classifier of four rotations, built from a `RotNetConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std.
    """

    config_class = RotNetConfig
    layout = "ssl_template.convert:LAYOUTS[rotation]"

    def __init__(self, config: RotNetConfig) -> None:
        super().__init__()
        self.config = config
        self.accumulates = config.is_vit  # a ResNet's batch norm spans the batch
        self.encoder = build_encoder(config)
        self.head = nn.Linear(self.encoder.features, 4)
        sync_batch_norm(self)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss and accuracy of the four rotations of `batch["views"][0]`."""
        # All four turns of an image are in the same step.
        turned = four_rotations(batch["views"][0])  # 4b c s s
        logits = self.head(self.encode(turned))  # 4b 4

        # The answer to the k-th quarter of the rows is k.
        guesses = logits.argmax(1).view(4, -1)  # 4 b
        right = guesses == torch.arange(4, device=guesses.device)[:, None]
        return {"loss": rotation_loss(logits), "accuracy": right.float().mean()}
