"""Momentum Contrast for Unsupervised Visual Representation Learning (He et al. 2019, arXiv 1911.05722), and MoCo v2
(arXiv 2003.04297).

A query q = f_q(x₁) has to find its key k = f_k(x₂) among the keys of earlier batches in a queue Q:

    L = −log( e^{q·k/T} / (e^{q·k/T} + Σ_{j≤K} e^{q·Q_j/T}) )                                           (equation 1)
    θ_k ← m θ_k + (1 − m) θ_q                                                                           (equation 2)

q, k and Q_j have length one. The key encoder has no gradient, stays in training mode and keeps batch norm statistics of
its own. Batch norm sees parts of the batch apart, and the keys are shuffled between the parts: else query and key would
know each other by their statistics (section 3.3, "Shuffling BN"). The authors' parts are their 8 GPUs; here they are
`bn_splits` parts of the global batch, so the result does not depend on the number of processes.

Order of a step: query, shuffled keys, loss against the old queue, backward, optimiser, then both the moving average and
the queue. The authors average before the key's pass of the next step, which is the same.

v2 is v1 with a projector of two layers, blur, T = 0.2 and half a cosine. Deviations: in v1 the authors make views grey
before they jitter their colours, and divide the learning rate at two epochs.

Expected (the authors' README): linear probe 60.6 % (v1), 67.7 % (v2), both 200 epochs; v2 71.1 % after 800. R50, ImageNet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_contrastive.config import MoCoConfig
from ssl_contrastive.heads import mlp
from ssl_contrastive.similarity import sum_log_sum_exp, unit
from ssl_contrastive.split_norm import average_statistics, split_batch_norm
from ssl_core import distributed
from ssl_core.ema import ema_update, frozen_copy
from ssl_core.encoder import build_encoder
from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import normalize


def info_nce_loss(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, *, counts: list[int] | None = None
) -> Tensor:
    """InfoNCE of queries and their keys (n, d) against the negatives of `queue` (k, d); equation 1, a mean.

    Nothing has to be normalised. Gradient flows to all three where they ask for it. Under several processes, DDP's mean
    of losses and gradients is that of the joined batch; `counts` are their rows where these are known, which saves asking.
    Raises ValueError for shapes that do not fit.
    """
    if query.shape != key.shape or query.ndim != 2 or queue.ndim != 2 or queue.shape[1] != query.shape[1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, queue))
        raise ValueError(f"query and key are (n, d), the queue (k, d), got {shapes}")
    scale = 1 / temperature
    query, key, queue = unit(query), unit(key), unit(queue)
    near = scale * (query * key).sum(1)  # n
    total = sum_log_sum_exp(query, queue, scale, extra=near) - near.sum()
    return total * (distributed.world_size() / sum(counts or distributed.row_counts(query)))


class MoCo(nn.Module, Pretrained):
    """Query and key encoder and the queue, built from a `MoCoConfig`.

    Images are uint8 (b, c, h, w), or float already normalised. `queue` (k, d) is a ring of keys of length one, the
    oldest at `queue_ptr`; batches may be of any size, larger than the queue too.
    """

    config_class = MoCoConfig
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, config: MoCoConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config)
        d = encoder.features
        self.encoder = split_batch_norm(encoder, config.bn_splits)
        self.projector = mlp(
            [d] * config.head_layers + [config.projection], hidden_bias=True, last_bias=True, hidden_norm=False
        )
        self.key_encoder = frozen_copy(self.encoder)
        self.key_projector = frozen_copy(self.projector)
        self.register_buffer("queue", unit(torch.randn(config.queue, config.projection)))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.keys: list[Tensor] = []

    @classmethod
    def layout(cls) -> Layout:
        from ssl_contrastive.convert import MOCO

        return MOCO

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """InfoNCE of the first `batch["views"]` as query and the second as key, and the other way if `symmetric`."""
        first, second = batch["views"]
        pairs = [(first, second), (second, first)] if self.config.symmetric else [(first, second)]
        counts, losses = distributed.row_counts(first), []
        for query_images, key_images in pairs:
            query = self.projector(self.encoder(self._normalized(query_images)))
            key = self._keys(key_images, counts)
            losses.append(info_nce_loss(query, key, self.queue, self.config.temperature, counts=counts))
        return {"loss": torch.stack(losses).sum()}

    @torch.no_grad()
    def _keys(self, images: Tensor, counts: list[int]) -> Tensor:
        """Keys (n, d) of length one, their batch norm computed in the company of other images than their queries'.

        `counts` are the rows of each process.
        """
        start = sum(counts[: distributed.rank()])
        mine = slice(start, start + len(images))
        order = distributed.broadcast(torch.randperm(sum(counts), device=images.device))
        shuffled = self._normalized(distributed.gather(images, counts)[order[mine]])
        keys = unit(self.key_projector(self.key_encoder(shuffled)))
        keys = distributed.gather(keys, counts)[order.argsort()]
        if self.training:
            self.keys.append(keys)
        return keys[mine]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Average the key encoder and put the keys of this step, of all processes, into the queue."""
        ema_update(self.key_encoder, self.encoder, self.config.ema)
        ema_update(self.key_projector, self.projector, self.config.ema)
        average_statistics(self)
        for keys in self.keys:
            self._enqueue(keys)
        self.keys.clear()

    def _enqueue(self, keys: Tensor) -> None:
        n, size = len(keys), len(self.queue)
        places = (self.queue_ptr + torch.arange(n, device=keys.device)) % size
        self.queue[places[-size:]] = keys[-size:].to(self.queue.dtype)
        self.queue_ptr.add_(n).remainder_(size)

    def encode(self, images: Tensor) -> Tensor:
        """The query encoder's features (b, d), before the projector."""
        return self.encoder(self._normalized(images))

    def patch_features(self, images: Tensor) -> Tensor:
        """The query encoder's last map, (b, h, w, d)."""
        return self.encoder.patch_features(self._normalized(images))  # type: ignore[operator]

    def param_groups(self, config: MoCoConfig) -> list[dict[str, Any]]:
        """One group: the authors decay biases and batch norm too."""
        return [{"params": [(name, p) for name, p in self.named_parameters() if p.requires_grad]}]

    def _normalized(self, images: Tensor) -> Tensor:
        return normalize(images, self.config.mean, self.config.std)
