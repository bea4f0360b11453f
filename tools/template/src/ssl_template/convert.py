"""The encoder's weights elsewhere: transformers' `vit` and timm's ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.keymap import VIT, VIT_IN_MEMORY, VIT_TIMM, KeyMap, prefixed
from ssl_core.hub.layout import Layout
from ssl_core.hub.resize import adapt_stem
from ssl_core.patches import interpolate_positions, square_grid
from ssl_template.config import RotNetConfig
from ssl_template.rotation import RotNet

KEYMAP = KeyMap(
    rows=prefixed(VIT, ours="encoder."),
    also=(
        *prefixed(VIT_IN_MEMORY, ours="encoder."),
        *prefixed(VIT, ours="encoder.", theirs="vit."),
        *prefixed(VIT_TIMM, ours="encoder."),
    ),
    drop=(r"pooler\..*", r"classifier\..*"),
)

NAMES = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "patch_size": "patch_size",
    "in_channels": "num_channels",
}
"""Our config fields and transformers' names for the same value."""
PIXELS = ("mean", "std")


def to_theirs(config: RotNetConfig) -> dict[str, Any]:
    """config.json of transformers' ViTModel."""
    return {
        "model_type": "vit",
        "architectures": ["ViTModel"],
        "dtype": "float32",
        "image_size": config.size[0],
        "intermediate_size": 4 * config.dim,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
    }


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> RotNetConfig:
    """Our config of a transformers folder. Raises ConfigError for another architecture."""
    known = {ours: values[theirs] for ours, theirs in NAMES.items() if theirs in values}
    fields = {
        "image_size": values.get("image_size", 224),
        **pixels(known.get("in_channels", 3)),
        **known,
    }
    fields |= {ours: preprocessor[f"image_{ours}"] for ours in PIXELS if f"image_{ours}" in preprocessor}
    config = from_dict(RotNetConfig, fields)
    for key, ours in to_theirs(config).items():
        if key not in ("architectures", "dtype") and values.get(key, ours) != ours:
            raise ConfigError(f"{key} = {values[key]!r} is not supported, only {ours!r}")
    return config


def infer(state: Mapping[str, Tensor]) -> RotNetConfig:
    """Config of a checkpoint that holds none, from its shapes; heads are 64 wide.

    Raises ConfigError when the tensors are not a ViT's.
    """
    for needed in ("encoder.patch_embed.proj.weight", "encoder.pos_embed"):
        if needed not in state:
            raise ConfigError(f"the checkpoint is not a ViT: it holds no {needed}")
    dim, channels, patch, _ = state["encoder.patch_embed.proj.weight"].shape
    rows, _ = square_grid(state["encoder.pos_embed"].shape[1] - 1)
    blocks = {key.split(".")[2] for key in state if key.startswith("encoder.blocks.")}
    return RotNetConfig(
        image_size=rows * patch,
        patch_size=patch,
        in_channels=channels,
        dim=dim,
        depth=len(blocks),
        heads=dim // 64,
        **pixels(channels),
    )


def pixels(channels: int) -> dict[str, Any]:
    """Mean and std for this number of channels: the mean of the defaults where it is not three."""
    if channels == 3:
        return {}
    return {name: (sum(getattr(RotNetConfig, name)) / 3,) * channels for name in PIXELS}


def adapt(state: dict[str, Tensor], stored: RotNetConfig, wanted: RotNetConfig) -> dict[str, Tensor]:
    """`state` for the channels and the image size of `wanted`."""
    state = dict(state)
    if stored.in_channels != wanted.in_channels:
        stem = "encoder.patch_embed.proj.weight"
        state[stem] = adapt_stem(state[stem], wanted.in_channels)
    if stored.grid != wanted.grid:
        positions, how = state["encoder.pos_embed"], wanted.pos_interp
        state["encoder.pos_embed"] = interpolate_positions(positions, stored.grid, wanted.grid, how)
    return state


LAYOUT = Layout(keymap=KEYMAP, to_theirs=to_theirs, from_theirs=from_theirs, infer=infer, adapt=adapt)


def to_transformers(method: RotNet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' ViTModel."""
    return KEYMAP.to_theirs(method.state_dict())[0], to_theirs(method.config)


EXPORTS = {"transformers": to_transformers}
