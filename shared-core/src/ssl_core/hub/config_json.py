"""config.json of other projects, in both directions: names, options that we have in one value only,
and pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_core.config import ConfigError


def written(model_type: str, architecture: str, config: Any, names: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """A transformers config.json: the fields of `config` under their `names` (ours → theirs), and
    `more`."""
    fields = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    return {"model_type": model_type, "architectures": [architecture], "dtype": "float32", **fields, **more}


def read(
    values: Mapping[str, Any], *types: str, names: Mapping[str, str], fixed: Mapping[str, Any], by: str
) -> dict[str, Any]:
    """Our fields (`names`: ours → theirs) that a config.json of one of the model `types` says.

    `fixed` are their options of which we have one value, their default too; `by` is the method that
    reads. Raises ConfigError for another model type or another value of a fixed option.
    """
    if values.get("model_type") not in types:
        raise ConfigError(f"model_type is {values.get('model_type')!r}: {by} reads {' and '.join(map(repr, types))}")
    for key, only in fixed.items():
        if values.get(key, only) != only:
            raise ConfigError(f"{key} = {values[key]!r} is not supported: use transformers for this model")
    return {ours: values[theirs] for ours, theirs in names.items() if theirs in values}


def positive(values: Mapping[str, Any], key: str, default: int) -> int:
    """A positive whole number of a config.json, or ConfigError."""
    value = values.get(key, default)
    if type(value) is not int or not 0 < value < 2**20:
        raise ConfigError(f"{key} = {value!r}: expected a positive number")
    return value


def pixels(cls: type, values: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """image_size, in_channels, mean and std as a transformers folder says them, for the config
    class `cls`."""
    size = values.get("image_size", 224)
    size = tuple(size) if isinstance(size, list) else size
    fields = {"image_size": size, **statistics(cls, positive(values, "num_channels", 3))}
    said = {ours: preprocessor[f"image_{ours}"] for ours in ("mean", "std") if f"image_{ours}" in preprocessor}
    return {**fields, **said}


def statistics(cls: type, channels: int) -> dict[str, Any]:
    """in_channels, and where these are not three the mean over colours of the class's mean and
    std."""
    if channels == 3:
        return {"in_channels": 3}
    average = {name: sum(getattr(cls, name)) / len(getattr(cls, name)) for name in ("mean", "std")}
    return {"in_channels": channels, **{name: (value,) * channels for name, value in average.items()}}
