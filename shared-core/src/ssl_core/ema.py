"""Exponential moving average of a module's weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target ← momentum · target + (1 - momentum) · online, in place, parameter by parameter of the
    same name.

    The target's buffers (batch norm's statistics) are left to its own forward passes.
    Raises ValueError when the parameters' names differ.
    """
    theirs = dict(online.named_parameters())
    ours = dict(target.named_parameters())
    if ours.keys() != theirs.keys():
        raise ValueError(f"target and online differ in {sorted(ours.keys() ^ theirs.keys())[:5]}")
    if ours:
        torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1 - momentum)


def frozen_copy(module: Module) -> Module:
    """A deep copy without gradient: the start of a teacher. Make it before DDP wraps the method."""
    return copy.deepcopy(module).requires_grad_(False)
