"""Bootstrap Your Own Latent (Grill et al. 2020, arXiv 2006.07733).

The online network predicts, from one view, the target network's projection of the other view. The
target is a moving average of the online network and has no predictor:

    L = mean ‖q(z₁)/‖q(z₁)‖ − z'₂/‖z'₂‖‖² + mean ‖q(z₂)/‖q(z₂)‖ − z'₁/‖z'₁‖‖²      (equation 2)
    ξ ← τ ξ + (1 − τ) θ,   τ = 1 − (1 − τ_0) · (cos(πk/K) + 1)/2 at step k of K    (equation 1)

Projector and predictor are Linear with bias, BN, ReLU, Linear without bias. Each view has its own
pass; batch norm spans all processes. The target stays in training mode and has its own batch norm
statistics. The second view is seldom blurred and sometimes solarized. The optimiser is LARS,
without decay and adaptation for biases and batch norm.

Deviations. The authors' code adds to the brightness and changes the contrast about each channel's
mean; ours multiplies the brightness and changes the contrast about the mean grey, as torchvision
does. (Their released code, whose figures are not the paper's, initialises the residual branches of
its bottlenecks to zero.) Expected (the paper): linear
probe 74.3 %, ResNet-50, 1000 epochs of ImageNet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_contrastive.config import BYOLConfig
from ssl_contrastive.heads import collapse, mlp
from ssl_contrastive.loss import batch_mean
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.ema import ema_update, frozen_copy
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.hub.pretrained import Pretrained
from ssl_core.schedule import cosine

FLOOR = 1e-6
"""Vectors are divided by no less than this length: the authors' rsqrt(max(‖x‖², 1e-12))."""


def byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """One direction of equation 2: predictions p and target projections z (n, d) of any length.

    No gradient goes to `z`. With several processes, DDP's mean is that of the joined batch. Raises
    ValueError when the shapes differ.
    """
    if p.shape != z.shape:
        raise ValueError(f"predictions {tuple(p.shape)} and projections {tuple(z.shape)} differ in shape")
    wide = torch.promote_types(p.dtype, torch.float32)
    p, z = (F.normalize(x.to(wide), dim=-1, eps=FLOOR) for x in (p, z.detach()))

    # Both have length one, so ‖p − z‖² = ‖p‖² + ‖z‖² − 2 p·z = 2 − 2 p·z.
    return batch_mean(2 - 2 * (p * z).sum(-1))


class BYOL(nn.Module, ImageEncoder, Pretrained):
    """Online and target network, built from a `BYOLConfig`.

    Images are uint8 (b, c, h, w), or normalised float. `encode` uses the online encoder.
    """

    config_class = BYOLConfig
    layout = "ssl_contrastive.convert:LAYOUTS[byol]"
    can_collapse = True  # constant projections minimise the loss: the loop watches their spread
    collapse = staticmethod(collapse)

    def __init__(self, config: BYOLConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config)
        head = [config.hidden, config.projection]

        # the online network θ: encoder f, projector g and predictor q
        self.encoder = sync_batch_norm(encoder)
        self.projector = sync_batch_norm(mlp([encoder.features, *head], hidden_bias=True))
        self.predictor = sync_batch_norm(mlp([config.projection, *head], hidden_bias=True))

        # the target network ξ starts as a copy of it, without the predictor
        self.target_encoder = frozen_copy(self.encoder)
        self.target_projector = frozen_copy(self.projector)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """The loss of both directions between the two `batch["views"]`."""
        views = [self.normalized(view) for view in batch["views"]]  # two of b c h w

        # The online network predicts from each view what the target network makes of the other.
        p1, p2 = (self.predictor(self.projector(self.encoder(view))) for view in views)  # b d
        with torch.no_grad():
            z1, z2 = (self.target_projector(self.target_encoder(view)) for view in views)  # b d
        return {"loss": byol_loss(p1, z2) + byol_loss(p2, z1)}

    def momentum(self, progress: float) -> float:
        """τ after the share `progress` of all steps: `config.ema` at 0, 1 at 1."""
        return cosine(progress, self.config.ema, 1.0)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target towards the online network: equation 1."""
        momentum = self.momentum(progress)
        ema_update(self.target_encoder, self.encoder, momentum)
        ema_update(self.target_projector, self.projector, momentum)

    def project(self, features: Tensor) -> Tensor:
        """What the loss compares, (b, d), of the encoder's features."""
        return self.projector(features)
