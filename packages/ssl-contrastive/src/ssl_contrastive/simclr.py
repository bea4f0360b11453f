"""A Simple Framework for Contrastive Learning of Visual Representations (Chen et al. 2020, arXiv
2002.05709), and SimCLRv2 (arXiv 2006.10029).

Two views of each of n images are embedded, z = g(f(x)) / ‖g(f(x))‖; each of the 2n embeddings has
to find its other view j(i) among all:

    ℓ_i = −log( e^{z_i·z_j(i)/τ} / Σ_{k≠i} e^{z_i·z_k/τ} )                         (equation 1)
    L = 1/2n · Σ_i ℓ_i,   i = 1 … 2n

Head: Linear, BN, ReLU, Linear, BN without shift. No Linear has a bias; v2 has one hidden layer
more. Both views go through the network as one batch of 2n, so batch norm mixes them, over all
processes. The optimiser is LARS with lr = 0.3 · batch / 256, 10 epochs of warm-up and half a
cosine. (The authors also give 0.075 · √batch, which is the same at 4096 and better for small
batches.)

Deviations: the authors' code minimises 2 L (`loss_a + loss_b`), which LARS cancels for matrices; we
return L. Our LARS multiplies by the learning rate after the momentum, the authors' before it. The
colour jitter is torchvision's: it multiplies the brightness, as v2 does and v1 does not, and
changes the contrast about the mean grey, where the authors' does so about each channel's mean.

Expected (the authors' README): linear probe 64.5 % after 100 epochs, 69.1 % after 1000; v2 71.7 %.
R50, ImageNet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_contrastive.config import SimCLRConfig
from ssl_contrastive.heads import mlp
from ssl_contrastive.loss import sum_log_sum_exp, sum_log_sum_exp_among, unit
from ssl_core import distributed
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.hub.pretrained import Pretrained


def dense_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Equation 1 as it is written, for two views (n, d): what `nt_xent_loss` computes."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # 2n d
    logits = z @ z.T / temperature  # 2n 2n
    logits.fill_diagonal_(-torch.inf)  # k ≠ i: no embedding is compared with itself
    other_view = torch.arange(len(z), device=z.device).roll(len(z1))  # j(i) = i ± n
    return F.cross_entropy(logits, other_view)


def nt_xent_loss(z1: Tensor, z2: Tensor, temperature: float, *, block: int = 0) -> Tensor:
    """Equation 1 of two views' embeddings (n, d) of any length; a scalar in at least fp32.

    With several processes, negatives come from all of them, and DDP's mean of losses and gradients
    is that of the joined batch, even if n differs. `block` is the number of similarities in memory
    at a time, 0 for what suits the device. Raises ValueError for embeddings of different shapes.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"two views are two (n, d) of the same shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    scale = 1 / temperature
    z1, z2 = unit(z1), unit(z2)  # n d
    anchors = torch.cat([z1, z2])  # 2n d
    counts = distributed.row_counts(anchors)

    # The logarithm turns equation 1 into a difference of sums over i:
    #     Σ ℓ_i = Σ log Σ_{k≠i} e^{z_i·z_k/τ} − Σ z_i·z_j(i)/τ
    # Only the first needs all pairs. `loss.py` computes it in blocks, not as a matrix of 2n by 2n.
    if distributed.world_size() == 1:
        all_pairs = sum_log_sum_exp_among(anchors, scale, block=block)
    else:
        # Each process has its own anchors; the k run over the embeddings of all processes.
        own = sum(counts[: distributed.rank()])
        all_pairs = sum_log_sum_exp(anchors, distributed.gather(anchors, counts), scale, own=own, block=block)

    # The second sum has each pair twice: as i, j(i) and as j(i), i.
    positives = 2 * scale * (z1 * z2).sum()

    # The mean is over the embeddings of all processes. DDP averages over processes: undo that.
    return (all_pairs - positives) * (distributed.world_size() / sum(counts))


class SimCLR(nn.Module, ImageEncoder, Pretrained):
    """Encoder f and projector g, built from a `SimCLRConfig`.

    Images are uint8 (b, c, h, w), or normalised float.
    """

    config_class = SimCLRConfig
    layout = "ssl_contrastive.convert:LAYOUTS[simclr]"

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config, zero_init_residual=True)
        projector = mlp([encoder.features] * config.head_layers + [config.projection])
        for layer in projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

        # The last batch norm has no shift: its bias stays zero and is never trained.
        last = nn.BatchNorm1d(config.projection)
        last.bias.requires_grad_(False)
        projector.append(last)

        self.encoder = sync_batch_norm(encoder)
        self.projector = sync_batch_norm(projector)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """NT-Xent of the two `batch["views"]`, which go through the network together."""
        images = self.normalized(torch.cat(batch["views"]))  # 2b c h w
        z = self.projector(self.encoder(images))  # 2b d
        z1, z2 = z.chunk(2)  # b d
        return {"loss": nt_xent_loss(z1, z2, self.config.temperature)}
