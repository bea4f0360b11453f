"""What training sees of an image: a random crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from denoising.config import DenoisingConfig
from ssl_train.data.views import random_resized_crop


@dataclass(frozen=True)
class Crop:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, h, w)]}."""

    config: DenoisingConfig

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"views": [random_resized_crop(sample["image"], rng, self.config.size, (0.5, 1.0)).contiguous()]}
