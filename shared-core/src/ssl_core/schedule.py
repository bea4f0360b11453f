"""The cosine that learning rates, momenta and temperatures follow."""

from __future__ import annotations

import math


def cosine(t: float, start: float, end: float) -> float:
    """From `start` at t = 0 to `end` at t = 1 by half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * t))
