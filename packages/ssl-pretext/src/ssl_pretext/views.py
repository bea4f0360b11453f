"""What the tasks are made of: square crops of an image, and the tiles of a square.

All of it is drawn from the sample's own random stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_pretext.config import JigsawConfig, PretextConfig, RelativePatchConfig, TilesConfig
from ssl_train.data.images import Encoded
from ssl_train.data.scenes import Scenes
from ssl_train.data.sources import Source, open_images
from ssl_train.data.views import cropped, random_flip, random_grayscale, random_turn


def square_crop(image: Tensor | Encoded, rng: np.random.Generator, size: int, scale: tuple[float, float]) -> Tensor:
    """A random square of `image` (c, h, w), resized to (c, size, size).

    Its area is a share in `scale` of the largest square's. Both axes are scaled alike: a crop of
    another aspect, squeezed into the square, would show which way up it was.
    """
    h, w = image.shape[1:]
    side = max(1, round(min(h, w) * math.sqrt(rng.uniform(*scale))))
    top, left = int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))
    return cropped(image, (top, left, side, side), (size, size))


def cut_tiles(square: Tensor, rng: np.random.Generator, size: int) -> Tensor:
    """Tiles (9, c, size, size) of a square (c, s, s), row by row, each anywhere in its cell.

    So neighbours are a random gap apart, and edges that continue from one tile to the next do not
    solve the task.
    """
    cell = square.shape[-1] // 3
    offsets = rng.integers(cell - size + 1, size=(9, 2))  # rows and columns inside the cell
    corners = [(k // 3 * cell + int(y), k % 3 * cell + int(x)) for k, (y, x) in enumerate(offsets)]
    return torch.stack([square[:, y : y + size, x : x + size] for y, x in corners])


def drop_colours(tiles: Tensor, rng: np.random.Generator) -> Tensor:
    """Keep one random channel of each of the tiles (9, c, h, w), and make the others mid-grey."""
    kept = torch.full_like(tiles, 128)  # any constant: it is zero once standardised
    for k, channel in enumerate(rng.integers(tiles.shape[1], size=len(tiles)).tolist()):
        kept[k, channel] = tiles[k, channel]
    return kept


@dataclass(frozen=True)
class SquareView:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, s, s)]}.

    This is the view of rotation and of colorization.
    """

    config: PretextConfig
    crops_first = True

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        view = square_crop(sample["image"], rng, self.config.size[0], self.config.crop_scale)
        if self.config.flip:
            view = random_flip(view, rng)
        if self.config.turn:
            view = random_turn(view, rng)
        return {"views": [view.contiguous()]}


@dataclass(frozen=True)
class TilesView:
    """One sample -> {"views": [uint8 (9, c, t, t)]}, the tiles of a square in their true places."""

    config: TilesConfig
    crops_first = True

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        config = self.config
        square = square_crop(sample["image"], rng, config.puzzle_size, config.crop_scale)
        if config.flip:
            square = random_flip(square, rng)
        if config.turn:
            square = random_turn(square, rng)
        tiles = cut_tiles(random_grayscale(square, rng, config.grayscale), rng, config.tile_size)
        if isinstance(config, RelativePatchConfig) and config.color_drop:
            tiles = drop_colours(tiles, rng)
        return {"views": [tiles]}


@dataclass(frozen=True)
class JigsawView:
    """One sample -> {"views": [uint8 (9, c, t, t)], "orders": int64 (m,)}.

    The orders are the numbers of the permutations that are asked about it.
    """

    config: JigsawConfig

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tiles = TilesView(self.config)(sample, rng)
        orders = rng.choice(self.config.permutations, self.config.orders_per_image, replace=False)
        return {**tiles, "orders": torch.from_numpy(orders.astype(np.int64))}


def open_turnable(data: str | Path | None, *, config: PretextConfig, split: str = "train") -> Source:
    """As `open_images`, but the built-in scenes are lit from anywhere.

    Light from above would give a rotation away.
    """
    source = open_images(data, config=config, split=split)
    if isinstance(source, Scenes):
        return Scenes(source.number, source.seed, source.size, source.channels, light="anywhere")
    return source
