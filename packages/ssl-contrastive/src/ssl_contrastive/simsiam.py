"""Exploring Simple Siamese Representation Learning (Chen & He 2020, arXiv 2011.10566).

One network embeds both views, z = f(x); a predictor h maps one embedding, p = h(z), to the other, which is taken as a
constant:

    L = −½ cos(p₁, sg(z₂)) − ½ cos(p₂, sg(z₁)),    in [−1, 1]                                     (equations 1 to 4)

f: encoder and a projector of Linear, BN, ReLU (all of the encoder's width), at the end Linear, BN without gain and
shift. h: Linear, BN, ReLU, Linear with a bottleneck of a quarter. One pass per view; batch norm is that of all
processes. SGD with decay on everything, half a cosine without warm-up; the predictor's learning rate stays at the peak.

Deviations: none known. Expected (the authors' README): linear probe 68.1 %, R50, 100 epochs of ImageNet at batch 512.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_contrastive.config import SimSiamConfig
from ssl_contrastive.heads import collapse, mlp
from ssl_core import distributed
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.encoder import build_encoder
from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import normalize


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """−½ (cos(p₁, sg z₂) + cos(p₂, sg z₁)), a mean over rows: four (n, d), not normalised.

    The gradient stops at z₁ and z₂ here. Under several processes DDP's mean is that of the joined batch. Raises
    ValueError when the shapes differ.
    """
    if len(shapes := {tuple(x.shape) for x in (p1, p2, z1, z2)}) > 1:
        raise ValueError(f"predictions and projections differ in shape: {sorted(shapes)}")
    wide = torch.promote_types(p1.dtype, torch.float32)
    first, second = (F.cosine_similarity(p.to(wide), z.detach().to(wide)) for p, z in ((p1, z2), (p2, z1)))
    return distributed.batch_mean(-0.5 * (first + second))


class SimSiam(nn.Module, Pretrained):
    """Encoder, projector and predictor, built from a `SimSiamConfig`. Images are uint8 (b, c, h, w), or normalised."""

    config_class = SimSiamConfig
    can_collapse = True

    def __init__(self, config: SimSiamConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config, zero_init_residual=True)
        d, out = encoder.features, config.projection
        projector = mlp([d] * config.head_layers + [out])
        projector.append(nn.BatchNorm1d(out, affine=False))
        self.encoder = sync_batch_norm(encoder)
        self.projector = sync_batch_norm(projector)
        self.predictor = sync_batch_norm(mlp([out, config.predictor_hidden, out], last_bias=True))

    @classmethod
    def layout(cls) -> Layout:
        from ssl_contrastive.convert import SIMSIAM

        return SIMSIAM

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """The symmetric loss of the two `batch["views"]`."""
        z1, z2 = (self.projector(self.encoder(self._normalized(view))) for view in batch["views"])
        return {"loss": simsiam_loss(self.predictor(z1), self.predictor(z2), z1, z2)}

    def project(self, features: Tensor) -> Tensor:
        """What the loss compares, (b, d), of the encoder's features, before the last batch norm: behind it collapse does
        not show."""
        return self.projector[:-1](features)  # type: ignore[index]

    def collapse(self, scores: dict[str, float], progress: float) -> str | None:
        """The cause, where the spread of the projections says so, else None; the loop asks."""
        return collapse(scores, progress)

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's features (b, d), before the projector."""
        return self.encoder(self._normalized(images))

    def patch_features(self, images: Tensor) -> Tensor:
        """The encoder's last map, (b, h, w, d)."""
        return self.encoder.patch_features(self._normalized(images))  # type: ignore[operator]

    def param_groups(self, config: SimSiamConfig) -> list[dict[str, Any]]:
        """The predictor with a constant learning rate, and the rest; biases and batch norm are decayed too."""
        named = [*self.named_parameters()]
        return [
            {"params": [(name, p) for name, p in named if not name.startswith("predictor.")]},
            {"params": [(name, p) for name, p in named if name.startswith("predictor.")], "fixed_lr": True},
        ]

    def _normalized(self, images: Tensor) -> Tensor:
        return normalize(images, self.config.mean, self.config.std)
