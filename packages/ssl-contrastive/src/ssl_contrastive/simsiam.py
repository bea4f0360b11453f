"""Exploring Simple Siamese Representation Learning (Chen & He 2020, arXiv 2011.10566).

One network embeds both views, z = f(x). A predictor h maps the embedding of one view, p = h(z), to
that of the other, which is treated as a constant (sg, stop-gradient):

    L = −½ cos(p₁, sg(z₂)) − ½ cos(p₂, sg(z₁)),    in [−1, 1]                 (equations 1 to 4)

f is the encoder and a projector of Linear, BN, ReLU (all as wide as the encoder's features) and a
last Linear with BN without gain and shift. h is Linear, BN, ReLU, Linear with a bottleneck of a
quarter. Each view has its own pass; batch norm spans all processes. SGD decays every parameter. The
learning rate is half a cosine without warm-up, but that of the predictor stays at the peak.

Deviations: the learning rate falls with every step, the authors' with every epoch. Expected (the
authors' README): linear probe 68.1 %, ResNet-50, 100 epochs of ImageNet at batch 512.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_contrastive.config import SimSiamConfig
from ssl_contrastive.heads import collapse, mlp
from ssl_contrastive.loss import batch_mean
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.hub.pretrained import Pretrained


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Equation 4: predictions p and embeddings z of two views, each (n, d) and of any length.

    No gradient goes to z₁ and z₂. With several processes, DDP's mean is that of the joined batch.
    Raises ValueError when the shapes differ.
    """
    if len(shapes := {tuple(x.shape) for x in (p1, p2, z1, z2)}) > 1:
        raise ValueError(f"predictions and projections differ in shape: {sorted(shapes)}")
    wide = torch.promote_types(p1.dtype, torch.float32)
    p1, p2, z1, z2 = (x.to(wide) for x in (p1, p2, z1.detach(), z2.detach()))  # detach is sg
    return batch_mean(-0.5 * (F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)))


class SimSiam(nn.Module, ImageEncoder, Pretrained):
    """Encoder, projector and predictor, built from a `SimSiamConfig`.

    Images are uint8 (b, c, h, w), or normalised float.
    """

    config_class = SimSiamConfig
    layout = "ssl_contrastive.convert:LAYOUTS[simsiam]"
    can_collapse = True  # constant projections minimise the loss: the loop watches their spread
    collapse = staticmethod(collapse)

    def __init__(self, config: SimSiamConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config, zero_init_residual=True)
        d = config.projection

        # f: the encoder and the projector, whose last batch norm has no gain and no shift
        projector = mlp([encoder.features] * config.head_layers + [d])
        projector.append(nn.BatchNorm1d(d, affine=False))
        self.encoder = sync_batch_norm(encoder)
        self.projector = sync_batch_norm(projector)

        # h: the predictor, a bottleneck
        self.predictor = sync_batch_norm(mlp([d, config.predictor_hidden, d], last_bias=True))

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """The symmetric loss of the two `batch["views"]`."""
        x1, x2 = (self.normalized(view) for view in batch["views"])  # b c h w
        z1, z2 = (self.projector(self.encoder(x)) for x in (x1, x2))  # embeddings: b d
        p1, p2 = self.predictor(z1), self.predictor(z2)  # predictions: b d
        return {"loss": simsiam_loss(p1, p2, z1, z2)}

    def project(self, features: Tensor) -> Tensor:
        """What the loss compares, (b, d), of the encoder's features.

        The last batch norm is left out: it rescales every channel, so collapse would not show after
        it.
        """
        return self.projector[:-1](features)  # type: ignore[index]

    def param_groups(self, config: SimSiamConfig) -> list[dict[str, Any]]:
        """The predictor has a constant learning rate. Biases and batch norm are decayed too."""
        predictor = [(name, p) for name, p in self.named_parameters() if name.startswith("predictor.")]
        others = [(name, p) for name, p in self.named_parameters() if not name.startswith("predictor.")]
        return [{"params": others}, {"params": predictor, "fixed_lr": True}]
