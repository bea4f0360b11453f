"""The augmentation vocabulary: functions of one uint8 image (c, h, w) and a sample's own random
stream.

Images stay uint8 (uint16 where they came so) until `normalize`, which runs on the whole batch where
the model is. The operations on pixels, with their parameters given, are in
`ssl_train.data.operations`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.pixels import moved, top
from ssl_train.data.images import Encoded
from ssl_train.data.operations import Operation, Step, chain, need_rgb

Jitter = tuple[float, float, float, float]
Steps = tuple[Step, ...]


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, as Pillow's: uint8 or uint16 (c, h, w) -> the same type (c,
    height, width)."""
    if image.shape[1:] == (height, width):
        return image
    if image.dtype == torch.uint16:  # torch has no kernel of its own for it
        planes = F.interpolate(image[None].float(), (height, width), mode="bicubic", antialias=True)[0]
        return planes.round_().clamp_(0, top(image)).to(torch.uint16)
    resized = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    return resized.clamp_(0, 1) if image.is_floating_point() else resized  # bicubic weights overshoot


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: area share uniform in `scale`, aspect
    log-uniform in `ratio`.

    The law of torchvision's RandomResizedCrop: ten tries, then the largest centre crop within
    `ratio`.
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


def cropped(image: Tensor | Encoded, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """The box (top, left, height, width) of an image, resized to (c, *size). A file that is not
    decoded yet is decoded as far as that needs."""
    y, x, h, w = box
    if isinstance(image, Encoded):
        if (scale := image.scale_for(h, w, size)) > 1:
            return image.cropped(scale, box, size)
        image = image.whole()
    return resize(image[:, y : y + h, x : x + w], *size)


def random_resized_crop(
    image: Tensor | Encoded, rng: np.random.Generator, size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """A random crop resized to `size` (h, w)."""
    return cropped(image, crop_box(rng, *image.shape[1:], scale=scale), size)


def random_flip(image: Tensor, rng: np.random.Generator, p: float = 0.5) -> Tensor:
    """Mirrored left to right with probability `p`."""
    return moved(image, lambda pixels: pixels.flip(-1)) if rng.random() < p else image


def random_turn(image: Tensor, rng: np.random.Generator) -> Tensor:
    """One of the symmetries of the picture, equally often: eight of a square, four of another
    rectangle."""
    mirror, turns = bool(rng.integers(2)), int(rng.integers(4))
    turns = turns if image.shape[-2] == image.shape[-1] else 2 * (turns // 2)
    return moved(image, lambda pixels: torch.rot90(pixels.flip(-1) if mirror else pixels, turns, (-2, -1)))


def color_jitter(
    image: Tensor,
    rng: np.random.Generator,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Tensor:
    """torchvision's ColorJitter: in random order, factors uniform in [max(0, 1 - x), 1 + x], hue
    turned by U(-hue, hue).

    Raises DataError where saturation or hue is not 0 and the image not RGB.
    """
    return chain(image, draw_jitter(rng, (brightness, contrast, saturation, hue)))


def draw_jitter(rng: np.random.Generator, jitter: Jitter) -> Steps:
    """The operations of one `color_jitter` in their order; those of strength 0 are left out, but
    drawn."""
    brightness, contrast, saturation, hue = jitter
    factors: list[tuple[Operation, float, float]] = [
        ("brightness", brightness, rng.uniform(max(0.0, 1 - brightness), 1 + brightness)),
        ("contrast", contrast, rng.uniform(max(0.0, 1 - contrast), 1 + contrast)),
        ("saturation", saturation, rng.uniform(max(0.0, 1 - saturation), 1 + saturation)),
        ("hue", hue, rng.uniform(-hue, hue)),
    ]
    return tuple((factors[i][0], factors[i][2]) for i in rng.permutation(4) if factors[i][1] > 0)


def random_grayscale(image: Tensor, rng: np.random.Generator, p: float = 0.2) -> Tensor:
    """Grey with probability `p`, with as many channels as before."""
    return chain(image, [("grayscale", 1.0)]) if rng.random() < p else image


@dataclass(frozen=True)
class Drawn:
    """What `Augment.draw` chose for one view."""

    box: tuple[int, int, int, int]
    """top, left, height and width of the crop"""
    mirror: bool
    """left to right"""
    upside_down: bool
    turns: int
    """quarter turns counter-clockwise, after the mirroring"""
    steps: Steps
    """operations on the pixels, in their order"""
    dropped: tuple[int, ...] = ()
    """bands set to 0"""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """One random view: `augment(image, rng)`, uint8 or uint16 (c, h, w) -> the same type (c,
    *size).

    In this order: a resized crop, mirroring, stain, colour jitter, gamma, grey, blur, solarize,
    noise, band drop.
    All that is random is drawn first (`draw`), always as many numbers, and then done (`apply`): two
    views of an image are two calls. The fields' defaults change nothing but crop and mirror. Raises
    ValueError for a quarter turn of another size than a square, DataError where saturation or hue
    meets an image that is not RGB.
    """

    size: tuple[int, int]
    """height and width of the view"""
    scale: tuple[float, float] = (0.08, 1.0)
    """share of the image's area"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """width over height of the crop"""
    flip: bool = True
    """mirrored left to right half of the time"""
    vertical_flip: bool = False
    rotate90: bool = False
    """turned by 0, 1, 2 or 3 quarters, equally often"""
    jitter: Jitter = (0.0, 0.0, 0.0, 0.0)
    """strengths of brightness, contrast, saturation and hue, as torchvision's ColorJitter has
    them"""
    jitter_p: float = 0.8
    gamma: tuple[float, float] | None = None
    """range of the exponent"""
    grayscale_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """standard deviation in pixels of the view"""
    solarize_p: float = 0.0
    band_drop_p: float = 0.0
    """of each band; one is always left"""
    stain: float = 0.0
    """largest change of the optical density of each stain, as a factor and added; needs RGB"""
    noise: float = 0.0
    """largest standard deviation of the noise, as a share of the range"""

    def __post_init__(self) -> None:
        if self.rotate90 and self.size[0] != self.size[1]:
            raise ValueError(f"rotate90 needs a square view, not {self.size[0]} x {self.size[1]} pixels")

    def __call__(self, image: Tensor | Encoded, rng: np.random.Generator) -> Tensor:
        return self.apply(image, self.draw(rng, *image.shape))

    def check(self, channels: int) -> None:
        """DataError where images of `channels` channels cannot be augmented so, which `build` may
        say before a run."""
        for strength, name in zip(self.jitter[2:], ("saturation", "hue"), strict=True):
            if strength > 0:
                need_rgb(channels, name)
        if self.stain:
            need_rgb(channels, "stain")

    def draw(self, rng: np.random.Generator, channels: int, height: int, width: int) -> Drawn:
        """All random choices for an image of this shape."""
        self.check(channels)
        box = crop_box(rng, height, width, self.scale, self.ratio)
        mirror, upside_down, jittered, grey, blurred, solarized = rng.random(6)
        turns = int(rng.integers(4))
        jitter, sigma = draw_jitter(rng, self.jitter), rng.uniform(*self.blur_sigma)
        power = rng.uniform(*self.gamma or (1.0, 1.0))
        dropped = np.flatnonzero(rng.random(channels) < self.band_drop_p)
        # only where they are used, so that other views are what they were before there were these
        changes = rng.uniform(-self.stain, self.stain, 6) if self.stain else np.zeros(6)
        stain = (*(1 + changes[:3]).tolist(), *changes[3:].tolist())
        noise = (rng.uniform(0, self.noise), float(rng.integers(2**53))) if self.noise else (0.0, 0.0)
        chosen: list[tuple[bool, Steps]] = [
            (self.stain > 0, (("stain", stain),)),
            (jittered < self.jitter_p, jitter),
            (self.gamma is not None, (("gamma", power),)),
            (grey < self.grayscale_p, (("grayscale", 1.0),)),
            (blurred < self.blur_p, (("blur", sigma),)),
            (solarized < self.solarize_p, (("solarize", 0.5),)),
            (self.noise > 0, (("noise", noise),)),
        ]
        return Drawn(
            box=box,
            mirror=self.flip and bool(mirror < 0.5),
            upside_down=self.vertical_flip and bool(upside_down < 0.5),
            turns=turns if self.rotate90 else 0,
            steps=tuple(step for happens, steps in chosen if happens for step in steps),
            dropped=tuple(dropped.tolist()) if len(dropped) < channels else (),
        )

    def apply(self, image: Tensor | Encoded, drawn: Drawn) -> Tensor:
        """The view that was drawn, contiguous."""
        view = cropped(image, drawn.box, self.size)
        mirrored = [axis for axis, on in ((-2, drawn.upside_down), (-1, drawn.mirror)) if on]
        if mirrored:
            view = moved(view, lambda pixels: pixels.flip(mirrored))
        if drawn.turns:
            view = moved(view, lambda pixels: torch.rot90(pixels, drawn.turns, (-2, -1)))
        view = chain(view, drawn.steps) if drawn.steps else view.clone(memory_format=torch.contiguous_format)
        for band in drawn.dropped:
            view[band] = 0
        return view


def natural(size: tuple[int, int], strength: float = 1.0) -> Augment:
    """Photographs: SimCLR's view (arXiv 2002.05709, appendix A), its colour jitter scaled by
    `strength`."""
    s = strength
    return Augment(size=size, jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), grayscale_p=0.2, blur_p=0.5)


def of_domain(config: Any) -> dict[str, Any]:
    """The fields of an `Augment` that `turn`, `gamma`, `noise`, `band_drop_p` and `stain` of a
    method's config set."""
    height, width = config.size
    turned = {"vertical_flip": config.turn, "rotate90": config.turn and height == width}
    return turned | {name: getattr(config, name) for name in ("gamma", "noise", "band_drop_p", "stain")}


@dataclass(frozen=True)
class EvalTransform:
    """The view that every evaluation reads: shorter side resized to `size / crop_pct`, centre crop
    of `size` (h, w).

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


def blank(config: Any) -> dict[str, Any]:
    """A picture without content, as an image method's source gives it."""
    return {"image": torch.zeros(config.in_channels, *config.size, dtype=torch.uint8)}


def eval_view(config: Any) -> EvalTransform:
    """The evaluation view of an image method's config."""
    return EvalTransform(config.size, config.crop_pct)
