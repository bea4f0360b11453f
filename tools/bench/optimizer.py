"""One update of the 112 million parameters of a ViT-B MAE.

Compares torch's three implementations of AdamW, and ways to compute moving averages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import torch
from measure import Case, Work
from torch import nn

from ssl_core.ema import ema_update, frozen_copy
from ssl_mae.config import PRESETS
from ssl_mae.mae import MAE
from ssl_train.optim import build_optimizer, decay_groups

MOMENTUM = 0.996


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--preset", choices=[*PRESETS["mae"]], default="vit_base")
    args = flags.parse_args()
    chosen = measure.settings(args)
    preset = (args.preset,)
    results = measure.race(
        [
            Case("fused (ours)", adamw_step, ("fused", *preset)),
            Case("torch's default", adamw_step, ("default", *preset)),
            Case("foreach", adamw_step, ("foreach", *preset)),
        ],
        chosen,
    )
    measure.report(f"AdamW, {args.preset}", results, chosen)
    results = measure.race(
        [
            Case("ema_update (ours)", ema_step, (ours, *preset)),
            Case("lightly update_momentum", ema_step, (lightly, *preset), ("lightly",)),
            Case("loop, in place", ema_step, (in_place, *preset)),
            Case("loop, m·p + (1 - m)·q", ema_step, (new_tensors, *preset)),
        ],
        chosen,
    )
    measure.report(f"Moving average, {args.preset}", results, chosen)


def adamw_step(kind: str, preset: str) -> Work:
    torch.manual_seed(0)
    method = MAE(PRESETS["mae"][preset]())
    for p in method.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    if kind == "fused":
        optimizer = build_optimizer(method, method.config)
    else:
        groups = decay_groups(method, method.config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=1e-4, foreach=True if kind == "foreach" else None)

    def run() -> Iterator[str]:
        optimizer.step()
        yield "step"

    return Work(run)


def ema_step(update: Callable[[nn.Module, nn.Module], None], preset: str) -> Work:
    torch.manual_seed(0)
    online = MAE(PRESETS["mae"][preset]())
    target = frozen_copy(online)

    def run() -> Iterator[str]:
        update(target, online)
        yield "update"

    return Work(run)


def ours(target: nn.Module, online: nn.Module) -> None:
    ema_update(target, online, MOMENTUM)


def lightly(target: nn.Module, online: nn.Module) -> None:
    from lightly.models.utils import update_momentum

    update_momentum(online, target, MOMENTUM)


@torch.no_grad()
def in_place(target: nn.Module, online: nn.Module) -> None:
    for p, q in zip(target.parameters(), online.parameters(), strict=True):
        p.mul_(MOMENTUM).add_(q, alpha=1 - MOMENTUM)


@torch.no_grad()
def new_tensors(target: nn.Module, online: nn.Module) -> None:
    for p, q in zip(target.parameters(), online.parameters(), strict=True):
        p.data = MOMENTUM * p.data + (1 - MOMENTUM) * q.data


if __name__ == "__main__":
    main()
