"""The commands `train` and `evaluate` as functions, for notebooks."""

from __future__ import annotations

from ssl_lm.config import RECIPES
from ssl_train.training import evaluator, trainer

train, evaluate = trainer(RECIPES), evaluator(RECIPES)
