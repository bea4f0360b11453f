"""Unsupervised Visual Representation Learning by Context Prediction (Doersch et al. 2015, arXiv
1505.05192).

Of two neighbouring tiles a classifier says where the second lies, seen from the first: in one of
eight directions.

    L = -log p(direction | f(first), f(second))                              one encoder f for both

The guards against trivial answers are those of the jigsaw puzzle: gaps and jitter between tiles,
grey images or one colour per tile against chromatic aberration (`color_drop`), and each tile
standardised by itself.

A 3 x 3 of tiles goes through the encoder once and gives eight pairs (centre and neighbour:
Kolesnikov et al. 2019, arXiv 1901.09005) or forty (`pairs="all"`: every two that touch, in both
orders, as in the paper's dense grid).

Deviations: any of our encoders in place of theirs; dropped colours are constant instead of faint
noise, which per-tile standardisation would make loud; no random shrinking of patches.
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
from ssl_pretext.config import RelativePatchConfig
from ssl_pretext.stage import StageEncoder
from ssl_pretext.tiles import TILES, check_tiles, embed_tiles, layer

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Rows and columns from the first tile to the second: the eight answers."""


def relative_patch_loss(logits: Tensor, directions: Tensor) -> Tensor:
    """Mean -log p(direction) of logits (n, 8) and true directions (n,); at least fp32."""
    return F.cross_entropy(wide(logits), directions)


def neighbours(pairs: str) -> Tensor:
    """int64 (p, 3): (first tile, second tile, direction) of the pairs "centre" or "all"."""
    found = []
    for first in [4] if pairs == "centre" else range(TILES):
        for direction, (down, right) in enumerate(DIRECTIONS):
            row, column = first // 3 + down, first % 3 + right
            if 0 <= row < 3 and 0 <= column < 3:
                found.append((first, 3 * row + column, direction))
    return torch.tensor(found)


class RelativePatch(nn.Module, StageEncoder, Pretrained):
    """An encoder of tiles and a classifier of eight directions, built from a `RelativePatchConfig`.

    Tiles are uint8 (b, …, c, h, w) or float. Images for `encode` are uint8 (b, c, h, w), or float
    already normalised.
    """

    config_class = RelativePatchConfig
    layout = "ssl_pretext.convert:LAYOUTS[relative-patch]"
    pairs: Tensor

    def __init__(self, config: RelativePatchConfig) -> None:
        super().__init__()
        self.config = config
        d, hidden = config.embedding, config.hidden
        self.encoder = build_encoder(config)
        self.embed = nn.Sequential(*layer(self.encoder.features, d))
        self.head = nn.Sequential(*layer(2 * d, hidden), nn.Linear(hidden, len(DIRECTIONS)))
        self.register_buffer("pairs", neighbours(config.pairs), persistent=False)  # p 3
        sync_batch_norm(self)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss and accuracy of every pair of the tiles `batch["views"][0]`, (b, 9, c, h, w) in
        their true places."""
        tiles = batch["views"][0]
        logits = self.pair_logits(tiles, self.pairs).flatten(0, 1)  # b·p 8
        answers = self.pairs[:, 2].repeat(len(tiles))  # b·p
        right = logits.argmax(1) == answers
        return {"loss": relative_patch_loss(logits, answers), "accuracy": right.float().mean()}

    def pair_logits(self, tiles: Tensor, pairs: Tensor) -> Tensor:
        """Scores (b, p, 8) of DIRECTIONS for tiles (b, t, c, h, w) and the `pairs` (p, 3) of
        `neighbours`."""
        features = embed_tiles(self.encoder, self.embed, tiles)  # b t d, once for all pairs
        both = features[:, pairs[:, :2]]  # b p 2 d
        logits = self.head(rearrange(both, "b p two d -> (b p) (two d)"))  # b·p 8
        return rearrange(logits, "(b p) k -> b p k", b=len(tiles))

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores (b, 8) of DIRECTIONS from tiles `first` to tiles `second`, both (b, c, h, w)."""
        for tiles in (first, second):
            check_tiles(tiles, self.config.in_channels)
        one_pair = torch.tensor([[0, 1, 0]], device=first.device)  # its direction is not read
        return self.pair_logits(torch.stack([first, second], 1), one_pair)[:, 0]
