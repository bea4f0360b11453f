"""Pretraining from a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_contrastive.config import RECIPES, ContrastiveConfig
from ssl_core.config import ConfigError, RunOptions
from ssl_core.train.run import train as run


def train(
    config: ContrastiveConfig,
    data: str | Path | None = None,
    out: str | Path = "runs/contrastive",
    *,
    init: str | Path | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Any:
    """The same as `ssl-contrastive train`, with the method whose config this is; see `ssl_core.train.run.train`."""
    for recipe in RECIPES.values():
        if recipe.config.endswith(f":{type(config).__name__}"):
            return run(recipe, config, data=data, out=out, init=init, options=options)
    raise ConfigError(f"{type(config).__name__} is the config of no method here")
