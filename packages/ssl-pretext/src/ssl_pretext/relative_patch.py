"""Unsupervised Visual Representation Learning by Context Prediction (Doersch et al. 2015, arXiv 1505.05192).

Of two neighbouring tiles a classifier says where the second lies, seen from the first: in one of eight directions.

    L = -log p(direction | f(first), f(second))                               one encoder f for both

Their guards against trivial answers are those of the jigsaw puzzle: gaps and jitter between tiles, against chromatic
aberration grey images or one colour per tile (`color_drop`), and each tile standardised by itself.

A 3 x 3 of tiles goes through the encoder once and gives eight pairs (centre and neighbour: Kolesnikov et al. 2019, arXiv
1901.09005) or forty (`pairs="all"`: every two that touch, in both orders, as in the paper's dense grid).

Deviations: any of our encoders in place of theirs; dropped colours are constant instead of faint noise, which per-tile
standardisation would make loud; no random shrinking of patches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core.batch_norm import sync_batch_norm
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.hub.pretrained import Pretrained
from ssl_pretext.config import RelativePatchConfig
from ssl_pretext.stage import stage_features
from ssl_pretext.tiles import TILES, check_tiles, embed_tiles

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Rows and columns from the first tile to the second: the eight answers."""


def neighbours(pairs: str) -> Tensor:
    """int64 (p, 3): (first tile, second tile, direction) of every pair of the 3 x 3, from the centre or of all."""
    found = []
    for first in [4] if pairs == "centre" else range(TILES):
        for direction, (down, right) in enumerate(DIRECTIONS):
            row, column = first // 3 + down, first % 3 + right
            if 0 <= row < 3 and 0 <= column < 3:
                found.append((first, 3 * row + column, direction))
    return torch.tensor(found)


def relative_patch_loss(logits: Tensor, directions: Tensor) -> Tensor:
    """Cross-entropy of logits (n, 8) and directions (n,), scalar; fp32."""
    return F.cross_entropy(logits.float(), directions)


class RelativePatch(nn.Module, ImageEncoder, Pretrained):
    """An encoder of tiles and a classifier of eight directions, built from a `RelativePatchConfig`.

    Tiles are uint8 (b, …, c, h, w) or float; images for `encode` uint8 (b, c, h, w) or float already normalised.
    """

    config_class = RelativePatchConfig
    layout = "ssl_pretext.convert:LAYOUTS[relative-patch]"
    pairs: Tensor

    def __init__(self, config: RelativePatchConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        d, hidden = config.embedding, config.hidden
        self.embed = nn.Sequential(
            nn.Linear(self.encoder.features, d, bias=False), nn.BatchNorm1d(d), nn.ReLU(inplace=True)
        )
        self.head = nn.Sequential(
            nn.Linear(2 * d, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, len(DIRECTIONS)),
        )  # fmt: skip
        self.register_buffer("pairs", neighbours(config.pairs), persistent=False)
        sync_batch_norm(self)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss and accuracy of every pair of the tiles `batch["views"][0]`, (b, 9, c, h, w) in their true places."""
        logits = self.pair_logits(batch["views"][0], self.pairs).flatten(0, 1)
        answers = self.pairs[:, 2].repeat(len(batch["views"][0]))
        return {
            "loss": relative_patch_loss(logits, answers),
            "accuracy": (logits.argmax(1) == answers).float().mean(),
        }

    def pair_logits(self, tiles: Tensor, pairs: Tensor) -> Tensor:
        """Scores (b, p, 8) of DIRECTIONS for `pairs` (p, 3), as `neighbours` gives them, of tiles (b, t, c, h, w)."""
        features = embed_tiles(self.encoder, self.embed, tiles)  # b t d
        both = features[:, pairs[:, :2]]  # b p 2 d
        logits = self.head(rearrange(both, "b p two d -> (b p) (two d)"))
        return rearrange(logits, "(b p) k -> b p k", b=len(tiles))

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores (b, 8) of DIRECTIONS from tiles `first` to tiles `second`, both (b, c, h, w)."""
        for tiles in (first, second):
            check_tiles(tiles, self.config.in_channels)
        one_pair = torch.tensor([[0, 1, 0]], device=first.device)
        return self.pair_logits(torch.stack([first, second], 1), one_pair)[:, 0]

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d) of whole images, of any size."""
        return stage_features(self.encoder, self.normalized(images), self.config.feature_stage)
