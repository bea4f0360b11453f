"""AdamW, SGD, LARS and Adafactor with the field's parameter groups, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssl_core.config import TrainConfig
from ssl_core.schedule import cosine


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay by `weight_decay`, and tensors of at most one dimension
    (biases, norms) do not decay.

    Parameters that need no gradient (fixed positions, a teacher) are in neither group.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decayed = [(name, p) for name, p in trained if p.ndim > 1]
    plain = [(name, p) for name, p in trained if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(method: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that `config.optimizer` names, with fused kernels where torch has them.

    Its groups are `method.param_groups(config)` if the method defines them, else `decay_groups`. A
    group may set `weight_decay` (default: the config's), `lr_scale`, which multiplies the
    schedule's learning rate, and `fixed_lr`, which keeps its rate at the peak.
    """
    own = getattr(method, "param_groups", None)
    groups = own(config) if own else decay_groups(method, config.weight_decay)
    groups = [{"weight_decay": config.weight_decay, "lr_scale": 1.0, **group} for group in groups]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.optimizer == "adafactor":
        # torch clamps mean squared gradients from below at the square of its first eps: 1e-15 gives
        # the paper's 1e-30. Its default, 1.2e-7, gives 1.4e-14, which is above most of them
        return torch.optim.Adafactor(groups, lr=config.lr, eps=(1e-15, 1e-3))
    return LARS(groups, lr=config.lr, momentum=config.momentum)


def schedule(optimizer: torch.optim.Optimizer, *, lr: float, peak: float, weight_decay: float) -> None:
    """Set this step's learning rate in every group, and its weight decay in groups that decay."""
    for group in optimizer.param_groups:
        group["lr"] = (peak if group.get("fixed_lr") else lr) * group["lr_scale"]
        if group["weight_decay"]:
            group["weight_decay"] = weight_decay


class LossScaler(torch.amp.GradScaler):
    """torch's scaler for fp16, plus a rule for when non-finite gradients end the run.

    torch skips a step with a non-finite gradient and halves the scale. The scale starts at 65,536,
    and many methods need far less, so the first steps are often skipped. Before the first finite
    gradient, steps may be skipped until the scale is 1. After it, two in a row may be skipped. The
    rule's counters are part of the state, so a resumed run decides as an uninterrupted one would.
    """

    HALVINGS = 16
    """The halvings that take torch's first scale, 65,536, to 1."""

    def __init__(self, device: str, *, enabled: bool) -> None:
        super().__init__(device, enabled=enabled)
        self.settled, self.skipped = False, 0

    def tolerates(self, norm: Tensor) -> bool:
        """Whether training may go on after a gradient of this norm. Call it once a step."""
        if bool(torch.isfinite(norm)):
            self.settled, self.skipped = True, 0
            return True
        self.skipped += 1
        return self.is_enabled() and self.skipped <= (2 if self.settled else self.HALVINGS)

    def state_dict(self) -> dict[str, Any]:
        own = {"settled": self.settled, "skipped": self.skipped}
        return {**super().state_dict(), **own} if self.is_enabled() else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        super().load_state_dict(state)
        if self.is_enabled():
            self.settled, self.skipped = state["settled"], state["skipped"]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888), as BYOL and MoCo v3 use it.

    A tensor w of more than one dimension has gradient g, decay λ, trust coefficient η, momentum μ:

        g' = g + λ w
        q = η ‖w‖ / ‖g'‖, or 1 if either norm is 0
        v ← μ v + q g'
        w ← w - lr · v

    SimCLR's code puts lr inside: v ← μ v + lr · q g'. The two are equal while lr is constant.
    Biases and batch norm (at most one dimension) are neither decayed nor scaled: q = 1, λ = 0.
    """

    def __init__(self, params: Any, *, lr: float, momentum: float = 0.9, trust: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            momenta = [self._momentum(w) for w in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, self._scaled(weights, group))
            torch._foreach_add_(weights, momenta, alpha=-group["lr"])
        return loss

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]

    def _scaled(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """q · g' of every tensor. The gradients themselves are not changed."""
        scaled = []
        for w in weights:
            g = w.grad
            assert g is not None
            if w.ndim > 1:
                g = g.add(w, alpha=group["weight_decay"])
                size, slope = w.norm(), g.norm()
                trust = group["trust"] * size / slope
                g = g * torch.where((size > 0) & (slope > 0), trust, torch.ones_like(trust))
            scaled.append(g)
        return scaled


def warmup_cosine(step: int, *, total: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Learning rate of step `step` in [0, total).

    It rises linearly from 0, lr(k) = peak · k / warmup, then falls to `final` along half a cosine.
    The first step therefore has a rate of 0, as in MAE's `lr_sched.py` and in SimCLR.
    """
    if step < warmup:
        return peak * step / warmup
    return cosine((step - warmup) / max(1, total - warmup), peak, final)
