"""Projectors and predictors: multi-layer perceptrons with batch norm, as each paper has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

COLLAPSED = 0.1
"""Projections whose spread, `health/projection_std` in the log, is lower have collapsed."""


def mlp(
    widths: Sequence[int], *, hidden_bias: bool = False, last_bias: bool = False, hidden_norm: bool = True
) -> nn.Sequential:
    """Linear layers of `widths`; batch norm (if `hidden_norm`) and ReLU follow all but the last."""
    *hidden, (last_inputs, outputs) = pairwise(widths)
    layers: list[nn.Module] = []
    for inputs, width in hidden:
        layers.append(nn.Linear(inputs, width, bias=hidden_bias))
        if hidden_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(last_inputs, outputs, bias=last_bias))


def collapse(scores: dict[str, float], progress: float) -> str | None:
    """A message if the projections have collapsed, else None; `scores` are what the loop logs."""
    spread = scores["health/projection_std"]
    # A random network maps all images to nearly the same vector, so the first tenth is not judged.
    if progress < 0.1 or spread >= COLLAPSED:
        return None
    return f"the projections are collapsing: their spread is {spread:.3f}, healthy ones are near 1"
