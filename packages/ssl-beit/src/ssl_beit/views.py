"""Views: a crop for the tokenizer's training; for BEiT one crop in two sizes, and the blocks that are hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_beit.config import BEiTConfig, DVAEConfig
from ssl_train.data.views import color_jitter, crop_box, random_flip, random_resized_crop, resize

ASPECT = 0.3
"""Blocks have aspect ratios from this to its inverse."""
TRIES = 10
"""Draws of a block before the mask is left as it is."""


def block_mask(
    height: int, width: int, budget: int, generator: np.random.Generator, *, smallest: int = 16
) -> np.ndarray:
    """Blockwise mask (h, w) bool of at most `budget` patches (BEiT, algorithm 1, and its masking_generator.py).

    Blocks of `smallest` patches or more, as far as the rest of the budget goes, with a log-uniform aspect ratio, are
    laid on one another until the budget is used up, or until ten draws in a row have brought nothing that fits. A block
    is never as high or as wide as the grid.
    Raises ValueError for a grid of one row or column, or a budget that it does not have.
    """
    if min(height, width) < 2 or not 0 < budget <= height * width:
        raise ValueError(f"no block mask of {budget} patches on a grid of {height} x {width}")
    # A row is an integer of `width` bits, so that a block is counted and laid by a few operations on integers.
    rows, count = [0] * height, 0
    log_aspect = math.log(ASPECT)
    draws = iter(())
    while count < budget:
        rest = budget - count
        for _ in range(TRIES):
            four = next(draws, None)
            if four is None:
                draws = iter(generator.random((16, 4)).tolist())
                four = next(draws)
            area = smallest + (rest - smallest) * four[0]
            aspect = math.exp(log_aspect * (1 - 2 * four[1]))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= height or w >= width:
                continue
            top, left = int(four[2] * (height - h + 1)), int(four[3] * (width - w + 1))
            block = ((1 << w) - 1) << left
            new = h * w - sum((row & block).bit_count() for row in rows[top : top + h])
            if 0 < new <= rest:
                rows[top : top + h] = [row | block for row in rows[top : top + h]]
                count += new
                break
        else:
            break
    packed = b"".join(row.to_bytes(-(-width // 8), "little") for row in rows)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    return bits.reshape(height, -1)[:, :width].astype(bool)


@dataclass(frozen=True)
class DVAEView:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, h, w)], "seed": int64 ()}."""

    config: DVAEConfig

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        view = random_resized_crop(sample["image"], rng, self.config.size, self.config.crop_scale)
        if self.config.flip:
            view = random_flip(view, rng)
        seed = torch.tensor(int(rng.integers(2**63)))
        return {"views": [view.contiguous()], "seed": seed}


def build_dvae(config: DVAEConfig) -> DVAEView:
    """The transform of the tokenizer's training samples."""
    return DVAEView(config)


@dataclass(frozen=True)
class BEiTView:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, h, w), uint8 (c, 8 rows, 8 columns)], "mask": bool (n,)}.

    Both views are the same box of the image: the encoder's by bicubic, the tokenizer's by Lanczos interpolation, so that
    a token lies on each patch.
    """

    config: BEiTConfig

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        config = self.config
        colour = config.jitter if sample["image"].shape[0] == 3 else 0.0
        image = color_jitter(sample["image"], rng, config.jitter, config.jitter, colour)
        if config.flip:
            image = random_flip(image, rng)
        top, left, h, w = crop_box(rng, *image.shape[1:], scale=config.crop_scale)
        crop = image[:, top : top + h, left : left + w]
        mask = block_mask(*config.grid, config.mask_patches, rng, smallest=config.mask_block)
        views = [resize(crop, *config.size).contiguous(), lanczos(crop, *config.tokenizer_size)]
        return {"views": views, "mask": torch.from_numpy(mask.ravel())}


def lanczos(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (c, h, w) -> uint8 (c, height, width) by Pillow's Lanczos kernel, channel by channel."""
    if image.shape[1:] == (height, width):
        return image.contiguous()
    channels = [Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS)
                for channel in image.contiguous().numpy()]  # fmt: skip
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))


def build_beit(config: BEiTConfig) -> BEiTView:
    """The transform of BEiT's training samples."""
    return BEiTView(config)
