"""Two random views of an image, drawn from its own stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_contrastive.config import ContrastiveConfig
from ssl_core.config import check
from ssl_train.data.views import Augment


@dataclass(frozen=True)
class TwoViews:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, h, w), uint8 (c, h, w)]}."""

    first: Augment
    second: Augment

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = sample["image"]
        return {"views": [self.first(image, rng), self.second(image, rng)]}


def build(config: ContrastiveConfig) -> TwoViews:
    """The transform of training samples; only blur and solarization differ between the two views.

    Raises ConfigError when colours are to be jittered that the images do not have; an encoder is evaluated all the same.
    """
    check(config.in_channels == 3 or not any(config.jitter[2:]) or not config.jitter_p, "jitter", config.jitter,
          f"saturation and hue need RGB images, these have {config.in_channels} channels: set both to 0")  # fmt: skip
    first, second = (
        Augment(
            size=config.size, scale=config.crop_scale, flip=config.flip, jitter=config.jitter, jitter_p=config.jitter_p,
            grayscale_p=config.grayscale_p, blur_p=blur_p, blur_sigma=config.blur_sigma, solarize_p=solarize_p,
        )
        for blur_p, solarize_p in zip(config.blur_p, config.solarize_p, strict=True)
    )  # fmt: skip
    return TwoViews(first, second)
