"""The `train` of a package's notebook: one function for all of its methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssl_core.config import ConfigError, TrainConfig
from ssl_core.method import Recipe, load
from ssl_train.options import RunOptions


def trainer(recipes: Mapping[str, Recipe]) -> Callable[..., Any]:
    """A package's `train` for notebooks: like the command, for the method of the given config."""

    def train_config(
        config: TrainConfig,
        data: str | Path | None = None,
        out: str | Path | None = None,
        *,
        init: str | Path | None = None,
        options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    ) -> Any:
        """Pretrain the method of `config`'s class on `data`, the built-in by default, into `out`,
        by default `runs/<method>`, and return it in eval mode; see `ssl_train.run.train`."""
        from ssl_train.run import train  # here, so that importing a package stays cheap

        trained = [recipe for recipe in recipes.values() if recipe.views]
        for recipe in trained:
            if load(recipe.config) is type(config):
                return train(recipe, config, data=data, out=out or f"runs/{recipe.name}", init=init, options=options)
        known = ", ".join(recipe.config.partition(":")[2] for recipe in trained)
        raise ConfigError(f"{type(config).__name__} is the config of no method here; there are {known}")

    return train_config
