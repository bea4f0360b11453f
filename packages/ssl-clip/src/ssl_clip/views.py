"""CLIP's view of a pair: a random crop of most of the image, and one of its captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssl_clip.config import CLIPConfig
from ssl_clip.pairs import KINDS
from ssl_core.errors import DataError
from ssl_train.data.views import random_resized_crop


@dataclass(frozen=True)
class PairView:
    """A sample's image and one of its captions, as tensors.

    {"image": uint8 (c, h, w), "input_ids": (k, t)} of an image and its k captions becomes
    {"views": [uint8 (c, h, w)], "input_ids": (t,)}. Each epoch draws a caption anew. Captions say
    "left" and "right", so nothing is flipped.
    """

    config: CLIPConfig
    crops_first = True

    def check(self, source: Any) -> None:
        """DataError for a source without captions."""
        if not hasattr(source, "captions"):
            raise DataError(f"{source.name(0)} and the others have no captions, which training needs. Give {KINDS}")

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        view = random_resized_crop(sample["image"], rng, self.config.size, self.config.crop_scale)
        ids = sample["input_ids"]
        return {"views": [view.contiguous()], "input_ids": ids[int(rng.integers(len(ids)))]}


def build(config: CLIPConfig) -> PairView:
    """The transform of training samples."""
    return PairView(config)


def blank(config: CLIPConfig) -> dict[str, Any]:
    """A pair without content."""
    image = torch.zeros(config.in_channels, *config.size, dtype=torch.uint8)
    return {"image": image, "input_ids": torch.zeros(1, config.context_length, dtype=torch.int64)}
