"""The folder's layout: our own names, since no other project has this network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from denoising.config import DenoisingConfig
from ssl_core.config import ConfigError
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import Layout


def to_theirs(config: DenoisingConfig) -> dict[str, Any]:
    """config.json; our own settings stand beside it, under "ssl_core"."""
    return {"model_type": "denoising", "width": config.width}


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> DenoisingConfig:
    """Config of a folder without an "ssl_core" section."""
    return DenoisingConfig(width=values["width"])


def infer(state: Mapping[str, Tensor]) -> DenoisingConfig:
    """Raises ConfigError: without config.json we do not know the size of the images."""
    raise ConfigError("this file holds no config: give the folder that holds it")


LAYOUTS = {
    "denoising": Layout(
        keymap=KeyMap(rows=(("encoder.{i}.{w}", "encoder.{i}.{w}"),)),  # the rest goes to heads.safetensors
        to_theirs=to_theirs,
        from_theirs=from_theirs,
        infer=infer,  # any image size fits these weights, so nothing is resized
    )
}
