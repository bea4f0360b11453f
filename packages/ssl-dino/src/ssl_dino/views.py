"""DINO's views of an image: large crops for teacher and student, small ones for the student alone, each blurred and
solarized in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_dino.config import DINOConfig
from ssl_train.data.views import Augment


@dataclass(frozen=True)
class MultiCrop:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 crops]}, the `global_crops` first.

    Every crop draws from the sample's own stream, in this order.
    """

    crops: tuple[Augment, ...]

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"views": [crop(sample["image"], rng) for crop in self.crops]}


def build(config: DINOConfig) -> MultiCrop:
    """The transform of training samples.

    Where images are not RGB there is no saturation or hue to jitter, and no grey: brightness and contrast remain.
    """
    rgb = config.in_channels == 3
    first, other, local = config.blurs
    look = {
        "flip": config.flip,
        "jitter": config.jitter if rgb else (*config.jitter[:2], 0.0, 0.0),
        "jitter_p": config.jitter_p,
        "grayscale_p": config.grayscale_p if rgb else 0.0,
    }
    small = (config.local_size, config.local_size)
    crops = [
        Augment(
            size=config.size, scale=config.global_scale, blur_p=other if i else first,
            solarize_p=config.solarize_p if i else 0.0, **look,
        )
        for i in range(config.global_crops)
    ]  # fmt: skip
    crops += [Augment(size=small, scale=config.local_scale, blur_p=local, **look)] * config.local_crops
    return MultiCrop(tuple(crops))
