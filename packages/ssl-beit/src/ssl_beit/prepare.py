"""What a run of BEiT needs before its first step: a tokenizer, loaded or trained here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ssl_beit.beit import BEiT
from ssl_beit.config import RECIPES, BEiTConfig, DVAEConfig
from ssl_beit.dvae import DVAE
from ssl_core import distributed
from ssl_core.config import ConfigError
from ssl_train.log import note
from ssl_train.options import RunOptions
from ssl_train.run import train


def prepare(
    method: BEiT,
    *,
    data: str | Path | None,
    held_out: float | None,
    group: str | None,
    init: str | Path | None,
    folder: Path,
    options: RunOptions,
) -> None:
    """Give `method` the tokenizer that its config names, for a run in `folder`.

    If the config names a preset, a tokenizer is trained first, into `folder/tokenizer`, on the same
    part of the data, and a line says so. Raises ConfigError if there is no tokenizer, or one of
    another vocabulary.
    """
    config = method.config
    if config.tokenizer is None:
        if init is None or method.tokenizer is None:
            raise ConfigError("tokenizer = None: nothing brings a tokenizer; give --tokenizer FOLDER or a preset")
        return  # `init` brought it
    recipe = RECIPES["dvae"]
    if config.tokenizer not in recipe.presets:
        method.adopt(DVAE.from_pretrained(config.tokenizer))
        return
    out = folder / "tokenizer"
    if distributed.is_main():
        note(f"no tokenizer given: training one first, preset {config.tokenizer!r}, into {out}")
    sizes = fitted(recipe.presets[config.tokenizer](), config)
    method.adopt(train(recipe, sizes, data=data, held_out=held_out, group=group, out=out, options=options))


def fitted(preset: DVAEConfig, config: BEiTConfig) -> DVAEConfig:
    """`preset` for the images and the vocabulary of a BEiT with this config."""
    # The tokenizer maps pixels itself, so its mean is 0 and its standard deviation 1.
    channels = config.in_channels
    pixels = {"in_channels": channels, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    tokens = {"image_size": config.tokenizer_size, "vocab": config.vocab}
    run: dict[str, Any] = {"seed": config.seed, "precision": config.precision}
    # No batch that the data could not fill, and no longer run than the one that it is for.
    batch_size, epochs = min(preset.batch_size, config.batch_size), min(preset.epochs, config.epochs)
    warmup_epochs = min(preset.warmup_epochs, config.warmup_epochs)
    run |= {"batch_size": batch_size, "epochs": epochs, "warmup_epochs": warmup_epochs}
    return dataclasses.replace(preset, **pixels, **tokens, **run)
