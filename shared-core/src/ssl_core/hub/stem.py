"""Weights for another number of image channels."""

from __future__ import annotations

from einops import rearrange, reduce, repeat
from torch import Tensor


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (d, c, p, q) for `channels` inputs.

    One channel: the sum over the old ones, which equals the old network on that channel repeated. More: the old bands
    are kept, others get their mean, all scaled by old / new so that the expected activation stays
    (contrastive specification §11). Fewer than the old, but more than one: the first ones, scaled alike.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    mean = repeat(weight.mean(1), "d p q -> d c p q", c=channels).clone()
    mean[:, : min(old, channels)] = weight[:, :channels]
    return mean * (old / channels)


def adapt_head(weight: Tensor, old: int, new: int) -> Tensor:
    """A pixel predictor's weight or bias ((p·p·c), …), channel fastest: one channel predicts the mean of the old ones,
    more keep theirs and add that mean."""
    split = rearrange(weight, "(p c) ... -> p c ...", c=old)
    mean = reduce(split, "p c ... -> p 1 ...", "mean")
    if new == 1:
        return rearrange(mean, "p c ... -> (p c) ...")
    shape = [-1, new] + [-1] * (mean.ndim - 2)
    out = mean.expand(*shape).clone()
    out[:, : min(old, new)] = split[:, :new]
    return rearrange(out, "p c ... -> (p c) ...")
