"""The augmentation vocabulary: functions of one uint8 image (c, h, w) and a sample's own random stream.

Images stay uint8 until `normalize`, which runs on the whole batch where the model is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 images (b, c, h, w) to float32, (x / 255 - mean) / std per channel; float images are returned as they are.

    Raises ValueError when `mean` has another number of channels than the images.
    """
    if images.is_floating_point():
        return images
    if images.ndim != 4 or images.shape[1] != len(mean):
        raise ValueError(
            f"images must be (b, {len(mean)}, h, w) for {len(mean)} channel means, got {tuple(images.shape)}"
        )
    scale = torch.tensor([255 * s for s in std], device=images.device).view(-1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(-1, 1, 1)
    return images.float().div_(scale).sub_(shift)  # in place: no batch-sized temporaries


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, as Pillow's: uint8 (c, h, w) -> uint8 (c, height, width)."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: area share uniform in `scale`, aspect log-uniform in `ratio`.

    The law of torchvision's RandomResizedCrop: ten tries, then the largest centre crop within `ratio`.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    image: Tensor, rng: np.random.Generator, size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """A random crop resized to `size` (h, w)."""
    top, left, h, w = crop_box(rng, *image.shape[1:], scale=scale)
    return resize(image[:, top : top + h, left : left + w], *size)


def random_flip(image: Tensor, rng: np.random.Generator, p: float = 0.5) -> Tensor:
    """Mirrored left to right with probability `p`."""
    return image.flip(-1) if rng.random() < p else image


@dataclass(frozen=True)
class EvalTransform:
    """The view that every evaluation reads: shorter side resized to `size / crop_pct`, centre crop of `size` (h, w).

    Rounded as torchvision's Resize and CenterCrop, by which the published figures were measured.
    """

    size: tuple[int, int]
    crop_pct: float

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        image = sample["image"]
        h, w = image.shape[1:]
        height, width = (math.floor(s / self.crop_pct) for s in self.size)
        fits_height = height * w >= width * h
        image = resize(image, *((height, height * w // h) if fits_height else (width * h // w, width)))
        top, left = (round((side - s) / 2) for side, s in zip(image.shape[1:], self.size, strict=True))
        return {"views": [image[:, top : top + self.size[0], left : left + self.size[1]]]}


def eval_view(config: Any) -> EvalTransform:
    """The evaluation view of an image method's config."""
    return EvalTransform(config.size, config.crop_pct)
