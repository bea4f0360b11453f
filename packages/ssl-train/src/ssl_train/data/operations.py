"""Operations on the pixels of one image (c, h, w): uint8, uint16, or floats in [0, 1], which are
taken as 24-bit levels. Their parameters are given, not drawn.

They give the results of torchvision and Pillow within one grey level of 255 on average, and mostly
to the bit: like theirs, a blend `f x + (1 - f) y` is cut off to whole levels. `chain` works on
float32 planes that hold whole numbers between operations, so a chain is bit for bit its operations
one by one.

Hue is a rotation in HSV's hexagon. Normalise the channels of a pixel to R, G, B in [0, 1], so that
one of them is 1 and one is 0: then its distance on the hexagon from pure red is 1 + G + B - R, and
its side is the sign of G - B. This needs no branches and no sorting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.errors import DataError
from ssl_core.pixels import top

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density in R, G and B of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001)."""

Operation = Literal[
    "brightness", "contrast", "saturation", "hue", "gamma", "grayscale", "blur", "solarize", "stain", "noise"
]
Step = tuple[Operation, float | tuple[float, ...]]


def chain(image: Tensor, steps: Iterable[Step]) -> Tensor:
    """`image` (c, h, w) after each (operation, parameter) of `steps`: the same type, contiguous.

    - brightness f: pixels times f; 0 is black, 1 the image;
    - contrast f: blended with the mean grey level of an RGB image, else of each band; 0 is flat;
    - saturation f: blended with the grey of the RGB image; 0 is grey;
    - hue s: the hue of HSV turned by s of the circle, in [-0.5, 0.5];
    - gamma p: top (x / top)^p with top = 255 or 65535;
    - grayscale: the luma of RGB in all three channels; of other bands, their mean in all of them;
    - blur σ: Gaussian of σ pixels, cut off at 3 σ, mirrored at the borders;
    - solarize t: pixels of at least t of the range inverted; at 0.5, x from 128 on becomes 255 - x;
    - stain (a1, a2, a3, b1, b2, b3): the optical density of each of STAINS times a, plus b;
    - noise (σ, seed): normal noise of σ of the range, from a generator of that seed.

    Raises DataError if saturation, hue or stain meets an image of other than 3 channels.
    """
    floats = image.is_floating_point()
    levels = 2**24 - 1 if floats else top(image)
    planes = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if floats:
        planes.clamp_(0, 1).mul_(levels).round_()
    for name, value in steps:
        planes = _OPERATIONS[name](planes, value, levels)
    return (planes.div_(levels) if floats else planes).to(image.dtype)


# Each takes planes (c, h, w), float32 with whole numbers in [0, top], and returns such planes.
# It may overwrite its input.


def _brightness(planes: Tensor, factor: float, top: int) -> Tensor:
    return planes.mul_(factor).clamp_(max=top).floor_()


def _contrast(planes: Tensor, factor: float, top: int) -> Tensor:
    grey = _luma(planes)[None] if len(planes) == 3 else planes
    mean = grey.mean(dim=(1, 2), keepdim=True).add_(0.5).floor_()
    return torch.lerp(mean, planes, factor).clamp_(0, top).floor_()


def _saturation(planes: Tensor, factor: float, top: int) -> Tensor:
    need_rgb(len(planes), "saturation")
    return torch.lerp(_luma(planes)[None], planes, factor).clamp_(0, top).floor_()


def _hue(planes: Tensor, shift: float, top: int) -> Tensor:
    need_rgb(len(planes), "hue")
    r, g, b = planes
    least = torch.minimum(torch.minimum(r, g), b)
    chroma = torch.maximum(torch.maximum(r, g), b).sub_(least)
    side = g - b
    distance = (g + b).sub_(r).sub_(least).div_(chroma.clamp_min(1)).add_(1)  # from red, in [0, 3]; 1 for a grey pixel
    angle = torch.copysign(distance, side).add_(6 * shift)  # red 0, green 2, blue -2, round a circle of 6
    angle.sub_(torch.mul(angle, 1 / 6).round_().mul_(6))
    for plane, middle in ((r, 0), (g, 2), (b, -2)):
        # within 1 of a channel's middle an angle has all of the channel, beyond 2 nothing of it
        near = angle.sub(middle).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(least, near, chroma, out=plane).round_()
    return planes


def _gamma(planes: Tensor, power: float, top: int) -> Tensor:
    return planes.div_(top).pow_(power).mul_(top).round_()


def _grayscale(planes: Tensor, _: float, top: int) -> Tensor:
    grey = _luma(planes) if len(planes) == 3 else planes.mean(dim=0).round_()
    return planes.copy_(grey.expand_as(planes))


def _solarize(planes: Tensor, threshold: float, top: int) -> Tensor:
    return torch.where(planes < threshold * (top + 1), planes, top - planes)


def _stain(planes: Tensor, value: tuple[float, ...], top: int) -> Tensor:
    need_rgb(len(planes), "stain")
    stains = np.array(STAINS)  # stain x channel
    # density = amounts @ stains: new density = density @ inverse @ scaled stains + shift @ stains
    scaled = torch.from_numpy(np.linalg.inv(stains) @ np.diag(value[:3]) @ stains).float()
    shift = torch.from_numpy(np.array(value[3:]) @ stains).float()
    density = planes.clamp(min=0.5).div_(top).log_().neg_()
    changed = torch.einsum("chw,cd->dhw", density, scaled) + shift[:, None, None]
    return changed.neg_().exp_().mul_(top).clamp_(0, top).round_()


def _noise(planes: Tensor, value: tuple[float, ...], top: int) -> Tensor:
    drawn = np.random.default_rng(int(value[1])).standard_normal(planes.shape, dtype=np.float32)
    return planes.add_(torch.from_numpy(drawn), alpha=value[0] * top).clamp_(0, top).round_()


def _blur(planes: Tensor, sigma: float, top: int) -> Tensor:
    """Each pass sums shifted copies of the padded planes in memory; rows run into each other in the
    padding only."""
    h, w = planes.shape[1:]
    weights = _gaussian(sigma, min(h, w) - 1)
    radius = len(weights) - 1
    if radius == 0:
        return planes
    padded = F.pad(planes[None], (radius,) * 4, mode="reflect")  # 1 c h+2r w+2r
    width = w + 2 * radius
    rows = _weighted_shifts(padded.view(-1), weights, step=width)
    both = _weighted_shifts(rows, weights, step=1)
    # The first sum starts `radius` rows down, the second `radius` columns to the right.
    return both.as_strided((len(planes), h, w), (padded[0, 0].numel(), width, 1)).add(0.5).floor_()


def _weighted_shifts(flat: Tensor, weights: tuple[float, ...], step: int) -> Tensor:
    """sum_i weights[|i|] flat[x + i step] at every x that is `radius` steps from both ends."""
    radius = len(weights) - 1
    length = len(flat) - 2 * radius * step
    middle = radius * step
    total = flat[middle : middle + length] * weights[0]
    pair = torch.empty_like(total)
    for i in range(1, radius + 1):
        before, after = middle - i * step, middle + i * step
        torch.add(flat[before : before + length], flat[after : after + length], out=pair)
        total.add_(pair, alpha=weights[i])
    return total


@lru_cache(maxsize=64)
def _gaussian(sigma: float, longest: int) -> tuple[float, ...]:
    """Weights of the middle, the next pixel, …. With those of the other side they sum to 1."""
    radius = min(round(3 * sigma), longest)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) if i else 1.0 for i in range(radius + 1)]
    total = 2 * sum(weights) - 1
    return tuple(weight / total for weight in weights)


def _luma(planes: Tensor) -> Tensor:
    """Planes (3, h, w) -> (h, w), rounded."""
    r, g, b = planes
    return r.mul(LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).round_()


def need_rgb(channels: int, name: str) -> None:
    """Raises DataError unless `channels` is 3."""
    if channels != 3:
        raise DataError(
            f"{name} needs RGB images of 3 channels, these have {channels}: leave it out, as jitter=(b, c, 0, 0) does; "
            "brightness and contrast take any number"
        )


_OPERATIONS: dict[str, Callable[[Tensor, Any, int], Tensor]] = {
    **{"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue},
    **{"gamma": _gamma, "grayscale": _grayscale, "blur": _blur, "solarize": _solarize},
    **{"stain": _stain, "noise": _noise},
}
