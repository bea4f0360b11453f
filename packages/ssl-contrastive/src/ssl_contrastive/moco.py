"""Momentum Contrast for Unsupervised Visual Representation Learning (He et al. 2019, arXiv
1911.05722), and MoCo v2 (arXiv 2003.04297).

A query q = f_q(x₁) has to find its key k = f_k(x₂) among the keys of earlier batches in a queue Q:

    L = −log( e^{q·k/T} / (e^{q·k/T} + Σ_{j≤K} e^{q·Q_j/T}) )                      (equation 1)
    θ_k ← m θ_k + (1 − m) θ_q                                                      (equation 2)

q, k and Q_j have length one. The key encoder has no gradient. It stays in training mode and keeps
its own batch norm statistics.

Batch norm normalises parts of the batch separately, and the keys are shuffled between the parts.
Otherwise a query and its key would share their statistics and could recognise each other by them
(section 3.3, "Shuffling BN"). The authors' parts are their 8 GPUs. Here they are `bn_splits` parts
of the global batch, so the result does not depend on the number of processes.

Order of a step: query, shuffled keys, loss against the old queue, backward, optimiser, then the
moving average and the queue. The authors average before the keys of the next step are computed,
which is the same.

v2 is v1 with a projector of two layers, blur, T = 0.2 and half a cosine. Deviations. The
learning rate falls with every step, the authors' with every epoch. In v1 they turn views grey
before they jitter the colours, and divide the learning rate at two epochs.

Expected (the authors' README): linear probe 60.6 % (v1) and 67.7 % (v2), both after 200 epochs;
v2 71.1 % after 800. ResNet-50, ImageNet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_contrastive.config import MoCoConfig
from ssl_contrastive.heads import mlp
from ssl_contrastive.loss import sum_log_sum_exp, unit
from ssl_contrastive.split_norm import average_statistics, split_batch_norm
from ssl_core import distributed
from ssl_core.ema import ema_update, frozen_copy
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.hub.pretrained import Pretrained


def dense_info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Equation 1 as in the paper's algorithm 1: what `info_nce_loss` computes."""
    query, key, queue = (F.normalize(x, dim=1) for x in (query, key, queue))  # n d, n d, k d
    positive = (query * key).sum(1, keepdim=True)  # n 1
    negative = query @ queue.T  # n k
    logits = torch.cat([positive, negative], 1) / temperature  # n 1+k
    labels = torch.zeros(len(query), dtype=torch.long, device=query.device)  # the positive stands first
    return F.cross_entropy(logits, labels)


def info_nce_loss(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, *, counts: list[int] | None = None, block: int = 0
) -> Tensor:
    """Equation 1, a mean over queries and their keys (n, d) with the negatives of `queue` (k, d).

    The inputs can have any length, and those that require a gradient get one. With several
    processes, DDP's mean of losses and gradients is that of the joined batch. `counts` are the rows
    of each process; pass them if you know them, otherwise the processes exchange them. `block` is
    the number of similarities in memory at a time, 0 for what suits the device. Raises ValueError
    for shapes that do not fit.
    """
    if query.shape != key.shape or query.ndim != 2 or queue.ndim != 2 or queue.shape[1] != query.shape[1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, queue))
        raise ValueError(f"query and key are (n, d), the queue (k, d), got {shapes}")
    scale = 1 / temperature
    query, key, queue = unit(query), unit(key), unit(queue)
    positive = scale * (query * key).sum(1)  # n

    # −log(e^{q·k/T} / Σ) = log Σ − q·k/T, where Σ runs over the queue and the positive, one more
    # logit. `loss.py` computes the sum of log Σ in blocks instead of a matrix of n by 1 + k.
    total = sum_log_sum_exp(query, queue, scale, extra=positive, block=block) - positive.sum()

    # The mean is over the queries of all processes. DDP averages over processes: undo that.
    return total * (distributed.world_size() / sum(counts or distributed.row_counts(query)))


class MoCo(nn.Module, ImageEncoder, Pretrained):
    """Query encoder f_q, key encoder f_k and the queue, built from a `MoCoConfig`.

    Images are uint8 (b, c, h, w), or normalised float. `encode` uses the query encoder. `queue`
    (k, d) is a ring of keys of length one, the oldest at `queue_ptr`. Batches may have any size,
    even more than the queue.
    """

    config_class = MoCoConfig
    layout = "ssl_contrastive.convert:LAYOUTS[moco]"
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, config: MoCoConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config)
        widths = [encoder.features] * config.head_layers + [config.projection]
        self.encoder = split_batch_norm(encoder, config.bn_splits)
        self.projector = mlp(widths, hidden_bias=True, last_bias=True, hidden_norm=False)

        # f_k starts as f_q. The queue starts with random keys.
        self.key_encoder = frozen_copy(self.encoder)
        self.key_projector = frozen_copy(self.projector)
        self.register_buffer("queue", unit(torch.randn(config.queue, config.projection)))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.keys: list[Tensor] = []  # of this step, until `after_step` puts them into the queue

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """InfoNCE of two `batch["views"]`, query and key; the other way too if `symmetric`."""
        x1, x2 = batch["views"]  # two random views of the same images, b c h w
        counts = distributed.row_counts(x1)
        losses = []
        for x_q, x_k in [(x1, x2), (x2, x1)] if self.config.symmetric else [(x1, x2)]:
            q = self.projector(self.encoder(self.normalized(x_q)))  # queries: b d
            k = self.encode_keys(x_k, counts)  # keys: b d, without gradient
            losses.append(info_nce_loss(q, k, self.queue, self.config.temperature, counts=counts))
        return {"loss": torch.stack(losses).sum()}

    @torch.no_grad()
    def encode_keys(self, images: Tensor, counts: list[int]) -> Tensor:
        """Keys (b, d) of length one. `counts` are the images of each process.

        Shuffling BN: the batch norm of each key sees other images than that of its query.
        """
        start = sum(counts[: distributed.rank()])
        mine = slice(start, start + len(images))  # this process's rows of the joined batch

        # Shuffle the joined batch, in the same order on all processes; encode one share of it here.
        order = distributed.broadcast(torch.randperm(sum(counts), device=images.device))
        shuffled = self.normalized(distributed.gather(images, counts)[order[mine]])
        keys = unit(self.key_projector(self.key_encoder(shuffled)))

        # Undo the shuffle: the inverse of a permutation is its argsort.
        keys = distributed.gather(keys, counts)[order.argsort()]
        if self.training:
            self.keys.append(keys)
        return keys[mine]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the key encoder, then put this step's keys of all processes into the queue."""
        # momentum update of f_k: equation 2
        ema_update(self.key_encoder, self.encoder, self.config.ema)
        ema_update(self.key_projector, self.projector, self.config.ema)
        average_statistics(self)

        # update the queue: the newest keys replace the oldest
        for keys in self.keys:
            self.enqueue(keys)
        self.keys.clear()

    def enqueue(self, keys: Tensor) -> None:
        """Replace the queue's oldest keys by `keys` (n, d), of which at most the last k stay."""
        n, size = len(keys), len(self.queue)
        places = (self.queue_ptr + torch.arange(n, device=keys.device)) % size
        self.queue[places[-size:]] = keys[-size:].to(self.queue.dtype)
        self.queue_ptr.add_(n).remainder_(size)

    def param_groups(self, config: MoCoConfig) -> list[dict[str, Any]]:
        """One group: the authors decay biases and batch norm too."""
        return [{"params": [(name, p) for name, p in self.named_parameters() if p.requires_grad]}]
