"""A Simple Framework for Contrastive Learning of Visual Representations (Chen et al. 2020, arXiv 2002.05709), and
SimCLRv2 (arXiv 2006.10029).

Two views of each of n images are embedded, z = g(f(x)) / ‖g(f(x))‖; each of the 2n embeddings has to find its other
view j(i) among all:

    ℓ_i = −log( e^{z_i·z_j(i)/τ} / Σ_{k≠i} e^{z_i·z_k/τ} ),      L = 1/2n · Σ_{i=1}^{2n} ℓ_i           (equation 1)

Head: Linear, BN, ReLU, Linear, BN without shift; no Linear has a bias; v2 has one hidden layer more. Both views go
through the network as one batch of 2n, so batch norm mixes them, over all processes. LARS, lr = 0.3 · batch / 256 (the
authors also have 0.075 · √batch, the same at 4096 and better for small batches), 10 epochs of warm-up, half a cosine.

Deviations: the authors' code minimises 2 L (`loss_a + loss_b`), which LARS cancels for matrices; we return L. LARS
multiplies by the learning rate behind the momentum, the authors before it. The colour jitter is v2's (multiplicative
brightness, as torchvision has it).

Expected (the authors' README): linear probe 64.5 % after 100 epochs, 69.1 % after 1000; v2 71.7 %. R50, ImageNet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_contrastive.config import SimCLRConfig
from ssl_contrastive.heads import mlp
from ssl_contrastive.similarity import sum_log_sum_exp, sum_log_sum_exp_among, unit
from ssl_core import distributed
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.encoder import build_encoder
from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import normalize


def nt_xent_loss(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views' embeddings (n, d), not normalised; equation 1, a scalar in at least fp32.

    Under several processes the negatives are everybody's, and DDP's mean over processes of losses and of gradients is
    that of the joined batch, with unequal n too. Raises ValueError for embeddings of different shapes.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"two views are two (n, d) of the same shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    scale = 1 / temperature
    z1, z2 = unit(z1), unit(z2)
    anchors = torch.cat([z1, z2])
    counts = distributed.row_counts(anchors)
    if distributed.world_size() == 1:
        far = sum_log_sum_exp_among(anchors, scale)
    else:
        own = sum(counts[: distributed.rank()]) + torch.arange(len(anchors), device=anchors.device)
        far = sum_log_sum_exp(anchors, distributed.gather(anchors, counts), scale, own=own)
    return (far - 2 * scale * (z1 * z2).sum()) * (distributed.world_size() / sum(counts))


class SimCLR(nn.Module, Pretrained):
    """Encoder and projector, built from a `SimCLRConfig`. Images are uint8 (b, c, h, w), or float already normalised."""

    config_class = SimCLRConfig

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config, zero_init_residual=True)
        d = encoder.features
        projector = mlp([d] * config.head_layers + [config.projection])
        projector.append(nn.BatchNorm1d(config.projection))
        projector[-1].bias.requires_grad_(False)  # type: ignore[union-attr]
        projector.apply(init_linear)
        self.encoder = sync_batch_norm(encoder)
        self.projector = sync_batch_norm(projector)

    @classmethod
    def layout(cls) -> Layout:
        from ssl_contrastive.convert import SIMCLR

        return SIMCLR

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """NT-Xent of the two `batch["views"]`, which go through the network together."""
        z = self.projector(self.encoder(self._normalized(torch.cat(batch["views"]))))
        z1, z2 = z.chunk(2)
        return {"loss": nt_xent_loss(z1, z2, self.config.temperature)}

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's features (b, d), before the projector."""
        return self.encoder(self._normalized(images))

    def patch_features(self, images: Tensor) -> Tensor:
        """The encoder's last map, (b, h, w, d)."""
        return self.encoder.patch_features(self._normalized(images))  # type: ignore[operator]

    def _normalized(self, images: Tensor) -> Tensor:
        return normalize(images, self.config.mean, self.config.std)


def init_linear(module: nn.Module) -> None:
    """SimCLR's rule for the head: weights from N(0, 0.01²)."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
