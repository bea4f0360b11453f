"""Pretraining from a notebook, the same as the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_core.config import RunOptions
from ssl_core.method import load
from ssl_pretext.config import RECIPES, PretextConfig


def train(
    config: PretextConfig,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    init: str | Path | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Any:
    """Pretrain the method of `config`'s class into `out`, `runs/<method>` by default; see `ssl_core.train.run.train`."""
    from ssl_core.train.run import train as run

    recipe = next(recipe for recipe in RECIPES if load(recipe.config) is type(config))
    return run(recipe, config, data=data, out=out or f"runs/{recipe.name}", init=init, options=options)
