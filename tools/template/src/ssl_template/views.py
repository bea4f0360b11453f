"""The view of an image whose rotation is asked: a random crop, never mirrored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_template.config import RotNetConfig
from ssl_train.data.views import random_resized_crop


@dataclass(frozen=True)
class CropView:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, s, s)]}."""

    config: RotNetConfig

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        view = random_resized_crop(sample["image"], rng, self.config.size, (0.5, 1.0))
        return {"views": [view.contiguous()]}


def build(config: RotNetConfig) -> CropView:
    """The transform of training samples."""
    return CropView(config)
