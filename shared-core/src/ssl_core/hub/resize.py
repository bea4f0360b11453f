"""Weights for another number of image channels or another image size.

The functions for a `Layout`'s `resize` take (tensor, stored config, wanted config): `stem`,
`positions`, `pixels`.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange, reduce, repeat
from torch import Tensor

from ssl_core.patches import interpolate_positions


def stem(weight: Tensor, stored: Any, wanted: Any) -> Tensor:
    """A first convolution for the channels of `wanted`: `adapt_stem`."""
    return weight if stored.in_channels == wanted.in_channels else adapt_stem(weight, wanted.in_channels)


def positions(pos: Tensor, stored: Any, wanted: Any) -> Tensor:
    """Positions (1, 1 + n, d) or (1 + n, d) for the grid of `wanted`, resampled as its `pos_interp`
    says."""
    batched = pos if pos.ndim == 3 else pos[None]
    return interpolate_positions(batched, stored.grid, wanted.grid, wanted.pos_interp).view(
        *pos.shape[:-2], -1, pos.shape[-1]
    )


def pixels(weight: Tensor, stored: Any, wanted: Any) -> Tensor:
    """The last layer of a pixel predictor, for the channels of `wanted`: `adapt_head`."""
    if stored.in_channels == wanted.in_channels:
        return weight
    return adapt_head(weight, stored.in_channels, wanted.in_channels)


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (d, c, p, q) for `channels` inputs.

    For one channel: the sum over the old ones. It equals the old network on that channel repeated.
    For more: the old bands are kept and others get their mean, all scaled by old / new so that the
    expected activation stays. For fewer, but more than one: the first ones, scaled alike.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    mean = repeat(weight.mean(1), "d p q -> d c p q", c=channels).clone()
    mean[:, : min(old, channels)] = weight[:, :channels]
    return mean * (old / channels)


def adapt_head(weight: Tensor, old: int, new: int) -> Tensor:
    """A pixel predictor's weight or bias ((p·p·c), …), channel fastest, for `new` instead of `old`
    channels.

    One channel predicts the mean of the old ones. More channels keep the old ones and add that
    mean.
    """
    split = rearrange(weight, "(p c) ... -> p c ...", c=old)
    mean = reduce(split, "p c ... -> p 1 ...", "mean")
    if new == 1:
        return rearrange(mean, "p c ... -> (p c) ...")
    shape = [-1, new] + [-1] * (mean.ndim - 2)
    out = mean.expand(*shape).clone()
    out[:, : min(old, new)] = split[:, :new]
    return rearrange(out, "p c ... -> (p c) ...")
