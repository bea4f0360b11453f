"""Projectors and predictors: multi-layer perceptrons with batch norm, as each paper has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ssl_contrastive.similarity import unit

COLLAPSED = 0.1
"""Spread of projections below which a run that is under way has collapsed (docs/decisions.md)."""


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


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of unit vectors (n, d), times √d: 1 when they point everywhere, 0
    when all are the same (arXiv 2011.10566, section 4.1). Read it before a batch norm, behind which it is always 1."""
    return unit(z).std(0, correction=0).mean() * z.shape[1] ** 0.5


def collapse(scores: dict[str, float], progress: float) -> str | None:
    """The cause where the logged `projection_std` says so. Judged after a tenth of the run: at first all images look
    alike to a random network."""
    if progress < 0.1 or scores["projection_std"] >= COLLAPSED:
        return None
    return f"the projections are collapsing: their spread is {scores['projection_std']:.3f}, 1 is healthy"
