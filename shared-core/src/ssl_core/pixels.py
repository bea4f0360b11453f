"""Pixels of any depth: uint8, uint16 and float images, and the normalisation that every encoder
starts with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_core.errors import DataError


def top(image: Tensor) -> int:
    """The value of white: 255 for uint8, 65535 for uint16."""
    if image.dtype not in (torch.uint8, torch.uint16):
        raise DataError(f"an image to augment is uint8 or uint16 (c, h, w), not {image.dtype}")
    return torch.iinfo(image.dtype).max


def as_float(images: Tensor) -> Tensor:
    """uint8 or uint16 pixels as float32 in [0, 1], float ones as they are."""
    return images if images.is_floating_point() else images.float().div_(top(images))


def moved(images: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """`move(images)` for a function that only moves pixels to other places.

    torch can neither flip nor gather uint16, so it is given the same bits as int16.
    """
    if images.dtype != torch.uint16:
        return move(images)
    return move(images.view(torch.int16)).view(torch.uint16)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (b, c, h, w) to float32: (x / top - mean) / std per channel, top = 255 or 65535.

    Float images are taken to be normalised already, and returned as they are.
    Raises ValueError when `mean` has another number of channels than the images.
    """
    if images.is_floating_point():
        return images
    if images.ndim != 4 or images.shape[1] != len(mean):
        what = f"images must be (b, {len(mean)}, h, w) for {len(mean)} channel means, got {tuple(images.shape)}"
        raise ValueError(what)
    scale = torch.tensor([top(images) * s for s in std], device=images.device).view(-1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(-1, 1, 1)
    return images.float().div_(scale).sub_(shift)  # in place: no batch-sized temporaries
