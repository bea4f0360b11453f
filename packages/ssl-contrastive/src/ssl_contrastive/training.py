"""The commands `train`, `evaluate` and `embed` as functions, for notebooks."""

from __future__ import annotations

from ssl_contrastive.config import RECIPES
from ssl_train.embed import embedder
from ssl_train.training import evaluator, trainer

train, evaluate, embed = trainer(RECIPES), evaluator(RECIPES), embedder(RECIPES)
