"""Pixels of any depth: uint8, uint16 and float images, and the normalisation that every encoder
starts with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

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


def check_images(images: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise TypeError unless `images` is a tensor, and warn if it holds floats that no
    normalisation by `mean` and `std` gives: values of 0..255, or of 0..1.

    Reading the extremes waits for a GPU. uint8 and uint16, what training feeds, skip it.
    """
    if not isinstance(images, Tensor):
        what = f"images are a tensor (b, c, h, w), not {type(images).__name__}: to read a path, a folder, PIL images or"
        raise TypeError(f"{what} arrays, call `embed(method, images)`, which every image package exports")
    # nothing can be read of a tensor that is traced or on meta
    unseen = torch.compiler.is_compiling() or torch.jit.is_tracing() or images.is_meta or not images.numel()
    # of another shape, they are refused by what reads them
    if unseen or not images.is_floating_point() or images.ndim != 4 or images.shape[1] != len(mean):
        return
    low, high = (extreme.item() for extreme in images.detach().aminmax())
    # where normalisation puts black and white, in the channel where each lies furthest out
    black, white = (
        min(-m / s for m, s in zip(mean, std, strict=True)),
        max((1 - m) / s for m, s in zip(mean, std, strict=True)),
    )
    unit, reach = black < 0 <= low < high <= 1 < white, 5 * (white - black)
    if unit or low < black - reach or high > white + reach:
        where = "in 0..1" if unit else f"far outside {black:.2g}..{white:.2g}"
        what = f"float images are taken as normalised already, but these lie {where}: give uint8 pixels,"
        warnings.warn(f"{what} or subtract the config's mean and divide by its std first", stacklevel=4)


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
