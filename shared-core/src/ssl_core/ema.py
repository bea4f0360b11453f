"""Exponential moving average of a module's weights."""

from __future__ import annotations

import copy
from typing import Literal, TypeVar

import torch
from torch import nn

Buffers = Literal["own", "copy", "ema"]
Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float, *, buffers: Buffers = "own") -> None:
    """target ← momentum · target + (1 - momentum) · online, in place, parameter by parameter of the same name.

    `buffers` says what happens to the target's buffers (batch norm's statistics): "own" leaves them to the target's
    own forward passes (MoCo, BYOL), "copy" takes the online ones (when the average is evaluated without forward
    passes), "ema" averages the floating-point ones and copies the rest.
    Raises ValueError when the parameters' names differ.
    """
    theirs = dict(online.named_parameters())
    ours = dict(target.named_parameters())
    if ours.keys() != theirs.keys():
        raise ValueError(f"target and online differ in {sorted(ours.keys() ^ theirs.keys())[:5]}")
    if ours:
        torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1 - momentum)
    if buffers == "own":
        return
    theirs_buffers = dict(online.named_buffers())
    for name, buffer in target.named_buffers():
        if buffers == "ema" and buffer.is_floating_point():
            buffer.lerp_(theirs_buffers[name], 1 - momentum)
        else:
            buffer.copy_(theirs_buffers[name])


def frozen_copy(module: Module) -> Module:
    """A deep copy without gradient: the start of a teacher. Make it before DDP wraps the method."""
    return copy.deepcopy(module).requires_grad_(False)
