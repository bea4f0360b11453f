"""Views: a crop for the tokenizer's training; for BEiT one crop in two sizes, and a mask.

A view is a function of a config bound to one. All randomness comes from the sample's own rng.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_beit.config import BEiTConfig, DVAEConfig
from ssl_beit.masking import block_mask
from ssl_core.config import ConfigError
from ssl_train.data.views import color_jitter, crop_box, random_flip, random_resized_crop, random_turn, resize

Sample = dict[str, Any]
View = Callable[[Sample, np.random.Generator], Sample]


def build_dvae(config: DVAEConfig) -> View:
    """The view of the tokenizer's training samples."""
    return partial(dvae_view, config)


def build_beit(config: BEiTConfig) -> View:
    """The view of BEiT's training samples. Raises ConfigError for an encoder alone, which has no
    tokens to predict."""
    if not config.vocab:
        raise ConfigError("vocab = 0: an encoder alone cannot be pretrained")
    return partial(beit_view, config)


def dvae_view(config: DVAEConfig, sample: Sample, rng: np.random.Generator) -> Sample:
    """{"image": uint8 (c, h, w)} -> {"views": [uint8 (c, h, w)], "seed": int64 ()}."""
    view = random_resized_crop(sample["image"], rng, config.size, config.crop_scale)
    if config.flip:
        view = random_flip(view, rng)
    if config.turn:
        view = random_turn(view, rng)
    # The seed of the sample's own Gumbel noise.
    seed = torch.tensor(int(rng.integers(2**63)))
    return {"views": [view.contiguous()], "seed": seed}


def beit_view(config: BEiTConfig, sample: Sample, rng: np.random.Generator) -> Sample:
    """{"image": uint8 (c, h, w)} -> {"views": [the encoder's, the tokenizer's], "mask": bool (n,)}.

    Views are uint8, (c, h, w) and (c, 8 rows, 8 columns). Both show the same box of the image, so
    that a token lies on each patch. The encoder's is resized by bicubic interpolation, the
    tokenizer's by Lanczos.
    """
    # Colours are jittered before the crop, so that both views have the same.
    saturation = config.jitter if sample["image"].shape[0] == 3 else 0.0
    image = color_jitter(sample["image"], rng, config.jitter, config.jitter, saturation)
    if config.flip:
        image = random_flip(image, rng)
    if config.turn:
        image = random_turn(image, rng)

    # One box, in two sizes.
    top, left, h, w = crop_box(rng, *image.shape[1:], scale=config.crop_scale)
    crop = image[:, top : top + h, left : left + w]
    mask = block_mask(*config.grid, config.mask_patches, rng, smallest=config.mask_block)
    views = [resize(crop, *config.size).contiguous(), lanczos(crop, *config.tokenizer_size)]
    return {"views": views, "mask": torch.from_numpy(mask.ravel())}


def lanczos(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (c, h, w) -> uint8 (c, height, width) by Pillow's Lanczos kernel, for each channel."""
    if image.shape[1:] == (height, width):
        return image.contiguous()
    channels = [Image.fromarray(channel) for channel in image.contiguous().numpy()]
    small = [channel.resize((width, height), Image.Resampling.LANCZOS) for channel in channels]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in small]))
