"""What the subjects that time a training step share.

These are its two parts, and the updates of our loop, of transformers' and of plain scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from measure import Work
from torch import Tensor, nn

from ssl_core.device import autocast
from ssl_train.fit import gradient_norm
from ssl_train.optim import build_optimizer, decay_groups


class Contender(NamedTuple):
    """One project's model: its loss on the batch, and what it does after the backward pass."""

    loss: Callable[[], Tensor]
    update: Callable[[], None]


def work(contender: Contender, precision: str, *, after: str = "optimiser") -> Work:
    """Forward and backward, then the update, which the table calls `after`.

    The fact "loss" is computed in fp32 before training.
    """
    with torch.no_grad():
        loss = round(float(contender.loss()), 6)

    def run() -> Iterator[str]:
        with autocast(precision, torch.device("cpu")):
            value = contender.loss()
        value.backward()
        yield "forward + backward"
        contender.update()
        yield after

    return Work(run, {"loss": loss})


def as_fit(method: Any) -> Callable[[], None]:
    """What `ssl_train.fit` does after the backward pass, in its order."""
    optimizer = build_optimizer(method, method.config)
    before, after = (getattr(method, hook, lambda progress: None) for hook in ("before_step", "after_step"))

    def update() -> None:
        if not torch.isfinite(gradient_norm(method, method.config.clip_grad)):
            raise RuntimeError("the gradient is not finite")
        before(0.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after(0.0)

    return update


def as_trainer(model: nn.Module, weight_decay: float) -> Callable[[], None]:
    """What transformers' Trainer does: clips the whole gradient to 1 and steps the fused AdamW."""
    optimizer = torch.optim.AdamW(decay_groups(model, weight_decay), lr=1e-4, fused=True)
    return lambda: follow(optimizer, model)


def follow(optimizer: torch.optim.Optimizer, clipped: nn.Module | None = None) -> None:
    """A step of a plain script, which may clip the whole gradient to 1 first."""
    if clipped is not None:
        nn.utils.clip_grad_norm_(clipped.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
