"""The `train` that each package exports for notebooks: one function for all of its methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssl_core.config import ConfigError, TrainConfig
from ssl_core.method import Recipe, load
from ssl_train.asked import Asked
from ssl_train.options import RunOptions


def trainer(recipes: Mapping[str, Recipe]) -> Callable[..., Any]:
    """Returns a package's `train` for notebooks, which works like the command."""

    def train_config(
        config: TrainConfig | str | None = None,
        data: str | Path | None = None,
        out: str | Path | None = None,
        *,
        minutes: float | None = None,
        max_steps: int | None = None,
        init: str | Path | None = None,
        options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    ) -> Any:
        """Pretrain on `data`, the built-in by default, into `out`, by default `runs/<method>`.

        `config` is a method's config, which is used as it is. It may also be a method's name, or
        be left out for the package's first method: then the settings are chosen from the data, and
        `minutes` or `max_steps` cut the run; on the built-in data they are the demo's. Returns the
        method in eval mode; see `ssl_train.run.train`.
        """
        from ssl_train.run import train  # here, so that importing a package stays cheap

        recipe = _recipe_of(recipes, config)
        asked: TrainConfig | Asked
        if config is None or isinstance(config, str):
            demo = recipe.preset(None, built_in=True) if data is None else None
            asked = Asked(demo, minutes=minutes, max_steps=max_steps)
        elif minutes is None and max_steps is None:
            asked = config
        else:
            raise ConfigError("a config has its epochs: minutes and max_steps are for a run without one")
        return train(recipe, asked, data=data, out=out or f"runs/{recipe.name}", init=init, options=options)

    return train_config


def _recipe_of(recipes: Mapping[str, Recipe], config: TrainConfig | str | None) -> Recipe:
    """The recipe with this name or this class of config; the first one for None."""
    trained = {name: recipe for name, recipe in recipes.items() if recipe.views}
    if config is None:
        return next(iter(trained.values()))
    if isinstance(config, str):
        if config not in trained:
            raise ConfigError(f"no method {config!r}; there are {', '.join(trained)}")
        return trained[config]
    for recipe in trained.values():
        if load(recipe.config) is type(config):
            return recipe
    known = ", ".join(recipe.config.partition(":")[2] for recipe in trained.values())
    raise ConfigError(f"{type(config).__name__} is the config of no method here; there are {known}")
