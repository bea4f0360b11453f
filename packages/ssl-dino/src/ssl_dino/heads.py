"""DINO's projection head (arXiv 2104.14294, section 3.1, appendix C), under the authors' names."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.batch_norm import sync_batch_norm
from ssl_core.encoder import init_linear


class Prototypes(nn.Module):
    """k vectors of direction v and length g: a weight-normed Linear without bias.

    The logits are g_k · ⟨x, v_k / ‖v_k‖⟩. The directions start as a Linear of PyTorch does, the
    lengths at 1. With `unit` the lengths stay at 1, and the logit of a unit vector is a cosine.
    (torch's own weight norm cannot be deep-copied, or has other names.)
    """

    def __init__(self, dim: int, k: int, *, unit: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(k, 1), requires_grad=not unit)
        self.weight_v = nn.Parameter(nn.Linear(dim, k, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, k)."""
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DINOHead(nn.Module):
    """An MLP to an L2-normalised bottleneck, then logits over `prototypes`.

    Its Linears start from a truncated normal of std 0.02, with zero biases. With `bn`, a batch norm
    over all processes follows each Linear but the last.
    """

    def __init__(
        self, features: int, *, prototypes: int, hidden: int, bottleneck: int, layers: int, bn: bool, unit: bool
    ) -> None:
        super().__init__()
        widths = [features, *[hidden] * (layers - 1)]
        blocks: list[nn.Module] = []
        for width, out in itertools.pairwise(widths):
            blocks += [nn.Linear(width, out), *([nn.BatchNorm1d(out)] if bn else []), nn.GELU()]
        self.mlp = sync_batch_norm(nn.Sequential(*blocks, nn.Linear(widths[-1], bottleneck)))
        self.mlp.apply(init_linear)
        self.last_layer = Prototypes(bottleneck, prototypes, unit=unit)

    def forward(self, x: Tensor) -> Tensor:
        """(n, features) -> (n, prototypes)."""
        x = F.normalize(self.mlp(x), dim=-1)  # n bottleneck
        return self.last_layer(x)
