"""DINO's views of an image: large crops for teacher and student, small ones for the student alone.

Each kind of crop is blurred and solarized with its own probability.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssl_dino.config import DINOConfig
from ssl_train.data.views import Augment, of_domain


@dataclass(frozen=True)
class MultiCrop:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 crops]}, the `global_crops` first.

    Every crop draws from the sample's own stream, in this order.
    """

    crops: tuple[Augment, ...]
    crops_first = True

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"views": [crop(sample["image"], rng) for crop in self.crops]}


def build(config: DINOConfig) -> MultiCrop:
    """The transform of training samples."""
    # Only RGB images have a saturation and a hue to jitter, or can become grey.
    rgb = config.in_channels == 3
    plain = Augment(
        size=config.size,
        scale=config.global_scale,
        flip=config.flip,
        jitter=config.jitter if rgb else (*config.jitter[:2], 0.0, 0.0),
        jitter_p=config.jitter_p,
        grayscale_p=config.grayscale_p if rgb else 0.0,
        **of_domain(config),
    )
    first, others, local = (replace(plain, blur_p=blur_p) for blur_p in config.blurs)
    others = replace(others, solarize_p=config.solarize_p)
    local = replace(local, size=(config.local_size,) * 2, scale=config.local_scale)
    return MultiCrop((first, *[others] * (config.global_crops - 1), *[local] * config.local_crops))
