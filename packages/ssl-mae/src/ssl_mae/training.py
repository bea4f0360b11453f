"""Pretraining from a notebook, the same as the command."""

from __future__ import annotations

from ssl_core.train.trainer import trainer
from ssl_mae.config import RECIPE

train = trainer([RECIPE])
