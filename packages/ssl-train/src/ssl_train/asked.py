"""What the user asked for, before anyone has looked at the data. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssl_core.config import check

AUTO = "auto"
"""The name of the preset that is chosen from the data."""
CHOSEN = (
    "image_size", "patch_size", "backbone", "dim", "depth", "heads", "width", "precision", "batch_size", "base_lr",
    "epochs", "warmup_epochs",
)  # fmt: skip
"""The fields for which `--help` says so."""

GIVEN = " given in Python"
"""How the name ends that run.json has for data that are an object."""


def is_given(data: Any) -> bool:
    """Whether `data` is an object that a program gives, not the name of data."""
    return not (data is None or isinstance(data, str | os.PathLike))


@dataclass(frozen=True)
class Asked:
    """A preset and what the user set beside it. `ssl_train.auto.settled` makes a config of it."""

    preset: Any = None
    """a config, adapted if it cannot run on the data; None chooses everything from the data"""
    typed: Mapping[str, Any] = field(default_factory=dict)
    """fields that the user set; they are never changed"""
    minutes: float | None = None
    """the longest time that the run may take, by an estimate"""
    max_steps: int | None = None
    """the largest number of optimiser steps"""

    def __post_init__(self) -> None:
        check(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "must be above 0")
        check(self.max_steps is None or self.max_steps > 0, "max_steps", self.max_steps, "must be at least 1")

    @property
    def config(self) -> Any:
        """The preset with what was typed, as it is before it is fitted to data."""
        return replace(self.preset, **self.typed)
