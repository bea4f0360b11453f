"""Projectors and predictors: multi-layer perceptrons with batch norm, as each paper has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


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
