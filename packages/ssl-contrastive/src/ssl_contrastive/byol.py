"""Bootstrap Your Own Latent (Grill et al. 2020, arXiv 2006.07733).

The online network predicts, from one view, the target network's projection of the other view; the target is a moving
average of the online network and has no predictor:

    L = mean ‖q(z₁)/‖q(z₁)‖ − z'₂/‖z'₂‖‖² + mean ‖q(z₂)/‖q(z₂)‖ − z'₁/‖z'₁‖‖²,   each term 2 − 2 cos      (equation 2)
    ξ ← τ ξ + (1 − τ) θ,   τ = 1 − (1 − τ_0) · (cos(πk/K) + 1)/2 at step k of K                           (equation 1)

Projector and predictor: Linear with bias, BN, ReLU, Linear without bias. One pass per view; batch norm is that of all
processes. The target stays in training mode: it has batch norm statistics of its own. The second view is seldom blurred
and sometimes solarized. LARS without decay and adaptation of biases and batch norm.

Deviations: none known of the paper; the authors' released code, whose figures are not the paper's, starts the residual
branches of its bottlenecks at zero. Expected (the paper): linear probe 74.3 %, R50, 1000 epochs of ImageNet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_contrastive.config import BYOLConfig
from ssl_contrastive.heads import collapse, mlp
from ssl_core import distributed
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.ema import ema_update, frozen_copy
from ssl_core.encoder import build_encoder
from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import normalize
from ssl_core.schedule import cosine

FLOOR = 1e-6
"""Least length by which a vector is divided, the authors' rsqrt(max(‖x‖², 1e-12))."""


def byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """2 − 2 cos(p, z), a mean over rows: predictions and projections (n, d), not normalised; one direction.

    No gradient goes to `z`. Under several processes DDP's mean is that of the joined batch. Raises ValueError when
    the shapes differ.
    """
    if p.shape != z.shape:
        raise ValueError(f"predictions {tuple(p.shape)} and projections {tuple(z.shape)} differ in shape")
    wide = torch.promote_types(p.dtype, torch.float32)
    p, z = (F.normalize(x.to(wide), dim=-1, eps=FLOOR) for x in (p, z.detach()))
    return distributed.batch_mean(2 - 2 * (p * z).sum(-1))


class BYOL(nn.Module, Pretrained):
    """Online and target network, built from a `BYOLConfig`. Images are uint8 (b, c, h, w), or normalised float."""

    config_class = BYOLConfig
    can_collapse = True

    def __init__(self, config: BYOLConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config)
        widths = [encoder.features, config.hidden, config.projection]
        self.encoder = sync_batch_norm(encoder)
        self.projector = sync_batch_norm(mlp(widths, hidden_bias=True))
        self.predictor = sync_batch_norm(mlp([config.projection, *widths[1:]], hidden_bias=True))
        self.target_encoder = frozen_copy(self.encoder)
        self.target_projector = frozen_copy(self.projector)

    @classmethod
    def layout(cls) -> Layout:
        from ssl_contrastive.convert import BYOL as LAYOUT

        return LAYOUT

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """The loss of both directions between the two `batch["views"]`."""
        views = [self._normalized(view) for view in batch["views"]]
        p1, p2 = (self.predictor(self.projector(self.encoder(view))) for view in views)
        with torch.no_grad():
            z1, z2 = (self.target_projector(self.target_encoder(view)) for view in views)
        return {"loss": byol_loss(p1, z2) + byol_loss(p2, z1)}

    def momentum(self, progress: float) -> float:
        """τ after the share `progress` of all steps: `config.ema` at 0, 1 at 1."""
        return cosine(progress, self.config.ema, 1.0)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        momentum = self.momentum(progress)
        ema_update(self.target_encoder, self.encoder, momentum)
        ema_update(self.target_projector, self.projector, momentum)

    def project(self, features: Tensor) -> Tensor:
        """What the loss compares, (b, d), of the encoder's features."""
        return self.projector(features)

    def collapse(self, scores: dict[str, float], progress: float) -> str | None:
        """The cause, where the spread of the projections says so, else None; the loop asks."""
        return collapse(scores, progress)

    def encode(self, images: Tensor) -> Tensor:
        """The online encoder's features (b, d), before the projector."""
        return self.encoder(self._normalized(images))

    def patch_features(self, images: Tensor) -> Tensor:
        """The online encoder's last map, (b, h, w, d)."""
        return self.encoder.patch_features(self._normalized(images))  # type: ignore[operator]

    def _normalized(self, images: Tensor) -> Tensor:
        return normalize(images, self.config.mean, self.config.std)
