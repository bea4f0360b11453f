"""MAE's view of an image: a random crop, a flip, and the noise that decides its mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssl_mae.config import MAEConfig
from ssl_train.data.views import random_flip, random_resized_crop, random_turn


@dataclass(frozen=True)
class MAEView:
    """One sample {"image": uint8 (c, h, w)} -> {"views": [uint8 (c, h, w)], "noise": float32 (n,)}.

    Everything is drawn from the sample's own stream, so a mask depends neither on the batch nor on
    the device.
    """

    size: tuple[int, int]
    """height and width of the view"""
    crop_scale: tuple[float, float]
    """range of the share of the image's area in a crop"""
    flip: bool
    """mirror half of the views"""
    turn: bool
    """turn and mirror them in all ways"""
    patches: int
    """patches of a view"""
    crops_first = True

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        view = random_resized_crop(sample["image"], rng, self.size, self.crop_scale)
        if self.flip:
            view = random_flip(view, rng)
        if self.turn:
            view = random_turn(view, rng)
        noise = rng.random(self.patches, dtype=np.float32)
        return {"views": [view.contiguous()], "noise": torch.from_numpy(noise)}


def build(config: MAEConfig) -> MAEView:
    """The transform of training samples."""
    return MAEView(config.size, config.crop_scale, config.flip, config.turn, config.patches)
