"""Pretraining from a notebook, the same as the command."""

from __future__ import annotations

from ssl_dino.config import RECIPES
from ssl_train.training import trainer

train = trainer(RECIPES)
