"""AdamW with the field's parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssl_core.config import TrainConfig


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with `weight_decay`; biases and other tensors of at most one dimension without.

    Parameters without gradient (fixed positions, a teacher) are left out.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decayed = [(name, p) for name, p in trained if p.ndim > 1]
    plain = [(name, p) for name, p in trained if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(method: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `method.param_groups(config)`, or `decay_groups`; the fused kernel, on a CPU too.

    A group's `lr_scale` multiplies the schedule's learning rate.
    """
    own = getattr(method, "param_groups", None)
    groups = own(config) if own else decay_groups(method, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
