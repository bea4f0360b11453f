"""Projectors and predictors: multi-layer perceptrons with batch norm, as each paper has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

COLLAPSED = 0.1
"""Spread of projections (`ssl_train.evaluate.health.feature_std`) below which they have collapsed: docs/decisions.md."""


def mlp(
    widths: Sequence[int], *, hidden_bias: bool = False, last_bias: bool = False, hidden_norm: bool = True
) -> nn.Sequential:
    """Linear layers of `widths`, after all but the last of them batch norm (`hidden_norm`) and ReLU."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(inputs, outputs, bias=last_bias if last else hidden_bias))
        if not last:
            layers += [nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)] if hidden_norm else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def collapse(scores: dict[str, float], progress: float) -> str | None:
    """The cause where the spread of the projections says so. Judged after a tenth of the run: at first all images look
    alike to a random network."""
    spread = scores["health/projection_std"]
    if progress < 0.1 or spread >= COLLAPSED:
        return None
    return f"the projections are collapsing: their spread is {spread:.3f}, healthy ones are near 1"
