"""Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles (Noroozi and Favaro
2016, arXiv 1603.09246).

An image is cut into 3 x 3 tiles, which are shown in one of P orders. A classifier says in which.

    shown_i = tile_{σ(i)},   L = -log p(σ | f(shown_1), …, f(shown_9)),   one encoder f for all

Whatever would solve this without a look at the picture is taken away (their section 3.3): tiles lie
a random gap apart, each is standardised by itself, most images are grey, and the orders differ in
as many places as orders can (`permutations`).

An encoder that sees one tile at a time gives a tile the same features wherever it is put, batch
norm included. So its features are permuted instead of its pixels, and several orders of an image
cost one pass (Kolesnikov et al. 2019, arXiv 1901.09005): `orders_per_image`.

Deviations: any of our encoders in place of AlexNet, with the head of Goyal et al. 2019 (arXiv
1905.01235): features to 1000 each, then 4096 and P, with batch norm between. Our permutation sets
are groups and not the result of a greedy search.

Expected (VISSL): ResNet-50 with 100 orders on ImageNet 48.6 % in the linear probe.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core.batch_norm import sync_batch_norm
from ssl_core.device import wide
from ssl_core.encoder import build_encoder
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import moved
from ssl_pretext.config import JigsawConfig
from ssl_pretext.permutations import permutation_set
from ssl_pretext.stage import StageEncoder
from ssl_pretext.tiles import TILES, check_tiles, embed_tiles, layer


def jigsaw_loss(logits: Tensor, orders: Tensor) -> Tensor:
    """Mean -log p(σ) of logits (n, permutations) and true orders' numbers (n,); at least fp32."""
    return F.cross_entropy(wide(logits), orders)


def shuffle(tiles: Tensor, orders: Tensor) -> Tensor:
    """Put tile `orders[b, i]` of `tiles` (b, t, …) in place i, for orders (b, m): (b, m, …)."""
    index = orders.view(*orders.shape, *[1] * (tiles.ndim - 2)).expand(-1, -1, *tiles.shape[2:])  # b m …
    return moved(tiles, lambda values: values.gather(1, index))


def unshuffle(tiles: Tensor, orders: Tensor) -> Tensor:
    """Inverse of `shuffle`."""
    return shuffle(tiles, orders.argsort(1))


class Jigsaw(nn.Module, StageEncoder, Pretrained):
    """An encoder of tiles and a classifier of their order, built from a `JigsawConfig`.

    Tiles are uint8 (b, 9, c, h, w) or float. Images for `encode` are uint8 (b, c, h, w), or float
    already normalised.
    """

    config_class = JigsawConfig
    layout = "ssl_pretext.convert:LAYOUTS[jigsaw]"
    permutations: Tensor

    def __init__(self, config: JigsawConfig) -> None:
        super().__init__()
        self.config = config
        d, hidden = config.embedding, config.hidden
        self.encoder = build_encoder(config)
        self.embed = nn.Sequential(*layer(self.encoder.features, d))
        # Built from first to last, the order in which the weights are drawn.
        answers = config.permutations
        self.head = nn.Sequential(*layer(TILES * d, hidden), nn.Dropout(config.dropout), nn.Linear(hidden, answers))
        orders = permutation_set(config.permutations, TILES, config.seed)  # p t
        self.register_buffer("permutations", orders.to(torch.get_default_device()))
        sync_batch_norm(self)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss and accuracy of the tiles `batch["views"][0]` (b, 9, c, h, w) in their true places,
        asked in the orders numbered `batch["orders"]` (b, m)."""
        tiles, orders = batch["views"][0], batch["orders"]
        features = embed_tiles(self.encoder, self.embed, tiles)  # b t d, once for all orders

        # All m orders of an image are one gather of m·t tiles.
        asked = rearrange(self.permutations[orders], "b m t -> b (m t)")
        shown = rearrange(shuffle(features, asked), "b (m t) d -> (b m) (t d)", t=TILES)
        logits, answers = self.head(shown), orders.flatten()  # b·m p, b·m
        right = logits.argmax(1) == answers
        return {"loss": jigsaw_loss(logits, answers), "accuracy": right.float().mean()}

    def logits(self, tiles: Tensor) -> Tensor:
        """Scores (b, permutations) of the orders in which `tiles` (b, 9, c, h, w) may be shown."""
        check_tiles(tiles, TILES, self.config.in_channels)
        features = embed_tiles(self.encoder, self.embed, tiles)  # b t d
        return self.head(features.flatten(1))

    @torch.no_grad()
    def solve(self, tiles: Tensor) -> Tensor:
        """`tiles` (b, 9, c, h, w) put back from the order that is most likely."""
        return unshuffle(tiles, self.permutations[self.logits(tiles).argmax(1)])
