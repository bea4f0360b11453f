"""Schedules: the learning rate, and the cosine that methods use for momenta and temperatures."""

from __future__ import annotations

import math


def cosine(t: float, start: float, end: float) -> float:
    """From `start` at t = 0 to `end` at t = 1 by half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * t))


def warmup_cosine(step: int, *, total: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Learning rate of step `step` in [0, total): linear from 0 to `peak`, then half a cosine to
    `final`.

    lr(k) = peak · k / warmup before the warm-up ends, as MAE's `lr_sched.py` and SimCLR have it.
    """
    if step < warmup:
        return peak * step / warmup
    return cosine((step - warmup) / max(1, total - warmup), peak, final)
