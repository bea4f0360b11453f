"""Two random views of an image, drawn from the image's own random stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssl_contrastive.config import ContrastiveConfig
from ssl_core.config import check
from ssl_train.data.views import Augment, of_domain


@dataclass(frozen=True)
class TwoViews:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, h, w), uint8 (c, h, w)]}."""

    first: Augment
    second: Augment
    crops_first = True

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = sample["image"]
        return {"views": [self.first(image, rng), self.second(image, rng)]}


def build(config: ContrastiveConfig) -> TwoViews:
    """The transform of training samples.

    Raises ConfigError for saturation or hue jitter of images that are not RGB.
    """
    # Checked here and not in the config: an encoder of such images can still be evaluated.
    needs_rgb = bool(config.jitter_p) and any(config.jitter[2:])
    reason = f"saturation and hue need RGB images, these have {config.in_channels} channels: set both to 0"
    check(config.in_channels == 3 or not needs_rgb, "jitter", config.jitter, reason)

    # The two views differ only in how often they are blurred and solarized.
    both = Augment(
        size=config.size,
        scale=config.crop_scale,
        flip=config.flip,
        jitter=config.jitter,
        jitter_p=config.jitter_p,
        grayscale_p=config.grayscale_p,
        blur_sigma=config.blur_sigma,
        **of_domain(config),
    )
    first, second = (
        replace(both, blur_p=blur_p, solarize_p=solarize_p)
        for blur_p, solarize_p in zip(config.blur_p, config.solarize_p, strict=True)
    )
    return TwoViews(first, second)
