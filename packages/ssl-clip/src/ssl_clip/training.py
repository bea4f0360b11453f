"""Pretraining from a notebook, the same as the command."""

from __future__ import annotations

from ssl_clip.config import RECIPE
from ssl_train.training import trainer

train = trainer([RECIPE])
