"""MAE's weights elsewhere: transformers' `vit_mae`, timm's `.mae` and the authors' checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_core.config import ConfigError
from ssl_core.hub.keymap import (
    BLOCK,
    BLOCK_IN_MEMORY,
    VIT,
    VIT_IN_MEMORY,
    VIT_TIMM,
    KeyMap,
    Row,
    prefixed,
)
from ssl_core.hub.pretrained import Layout
from ssl_core.hub.stem import adapt_head, adapt_stem
from ssl_core.patches import interpolate_positions, square_grid
from ssl_mae.config import MAEConfig

DECODER: tuple[Row, ...] = (
    ("decoder.mask_token", "decoder.mask_token"),
    ("decoder.pos_embed", "decoder.decoder_pos_embed"),
    ("decoder.embed.{w}", "decoder.decoder_embed.{w}"),
    ("decoder.norm.{w}", "decoder.decoder_norm.{w}"),
    ("decoder.pred.{w}", "decoder.decoder_pred.{w}"),
)
BLOCKS = "decoder.blocks.{i}."

KEYMAP = KeyMap(
    rows=(
        *prefixed(VIT, ours="encoder.", theirs="vit."),
        *DECODER,
        *prefixed(BLOCK, ours=BLOCKS, theirs="decoder.decoder_layers.{i}."),
    ),
    also=(
        # transformers 5 in memory, and the decoder as its `save_pretrained` spells it
        *prefixed(VIT_IN_MEMORY, ours="encoder.", theirs="vit."),
        *prefixed(BLOCK_IN_MEMORY, ours=BLOCKS, theirs="decoder.decoder_layers.{i}."),
        *prefixed(BLOCK, ours=BLOCKS, theirs="decoder.decoder_encoder.layer.{i}."),
        # ViTMAEModel, an encoder without prefix
        *prefixed(VIT, ours="encoder."),
        *prefixed(VIT_IN_MEMORY, ours="encoder."),
        # timm and the authors
        *prefixed(VIT_TIMM, ours="encoder."),
        ("decoder.mask_token", "mask_token"),
        *(
            (ours, theirs.removeprefix("decoder."))
            for ours, theirs in DECODER[1:]
            if isinstance(theirs, str)
        ),
        *((BLOCKS + name, "decoder_blocks.{i}." + name) for name, _ in BLOCK),
    ),
)

NAMES = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "decoder_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "patch_size": "patch_size",
    "in_channels": "num_channels",
    "layer_norm_eps": "layer_norm_eps",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
}
"""Our config fields and transformers' names for the same value."""


def to_theirs(config: MAEConfig) -> dict[str, Any]:
    """config.json of transformers' ViTMAEForPreTraining."""
    return {
        "model_type": "vit_mae",
        "architectures": ["ViTMAEForPreTraining"],
        "dtype": "float32",
        "image_size": config.image_size,
        "intermediate_size": int(config.dim * config.mlp_ratio),
        "decoder_intermediate_size": int(config.decoder_dim * config.mlp_ratio),
        "hidden_act": "gelu",
        "qkv_bias": True,
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
    }


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> MAEConfig:
    """Our config of a transformers folder; the recipe's fields keep the paper's values.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    if values.get("model_type") != "vit_mae":
        raise ConfigError(f"model_type is {values.get('model_type')!r}: MAE reads 'vit_mae'")
    from ssl_core.config import from_dict

    known = {ours: values[theirs] for ours, theirs in NAMES.items() if theirs in values}
    config = from_dict(MAEConfig, {**_DEFAULTS, **known, **_pixels(values, preprocessor)})
    for key, expected in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if values.get(key, expected) != expected:
            raise ConfigError(
                f"{key} = {values[key]!r} is not supported: use transformers for this model"
            )
    ratios = {
        values.get("intermediate_size", 3072) / config.dim,
        values.get("decoder_intermediate_size", 2048) / config.decoder_dim,
    }
    if len(ratios) > 1:
        raise ConfigError(
            "intermediate_size and decoder_intermediate_size have different ratios: use transformers"
        )
    return dataclasses.replace(config, mlp_ratio=ratios.pop())


_DEFAULTS = {"layer_norm_eps": 1e-12, "norm_pix_loss": False}
"""Where transformers' defaults for absent keys are not ours."""


def _pixels(values: dict[str, Any], preprocessor: dict[str, Any]) -> dict[str, Any]:
    size, channels = values.get("image_size", 224), values.get("num_channels", 3)
    pixels: dict[str, Any] = {"image_size": size if isinstance(size, int) else tuple(size)}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in preprocessor:
            pixels[ours] = preprocessor[theirs]
        elif channels != 3:
            default = getattr(MAEConfig, ours)
            pixels[ours] = [sum(default) / len(default)] * channels
    return pixels


def infer(state: Mapping[str, Tensor]) -> MAEConfig:
    """Config of an author's or timm's checkpoint, from shapes; heads are 64 wide (80 at ViT-H), 32 in the decoder.

    Raises ConfigError when the tensors are not a MAE's.
    """
    needed = (
        "encoder.patch_embed.proj.weight",
        "encoder.pos_embed",
        "encoder.blocks.0.mlp.fc1.weight",
    )
    if missing := [key for key in needed if key not in state]:
        raise ConfigError(f"the checkpoint is not a MAE: it holds no {missing[0]}")
    dim, channels, patch, _ = state[needed[0]].shape
    rows, cols = square_grid(state[needed[1]].shape[1] - 1)
    fields: dict[str, Any] = {
        "dim": dim,
        "depth": _depth(state, "encoder.blocks."),
        "heads": 16 if dim == 1280 else dim // 64,
        "patch_size": patch,
        "in_channels": channels,
        "image_size": rows * patch if rows == cols else (rows * patch, cols * patch),
        "mlp_ratio": state[needed[2]].shape[0] / dim,
    }
    if "decoder.embed.weight" in state:
        width = state["decoder.embed.weight"].shape[0]
        fields |= {
            "decoder_dim": width,
            "decoder_depth": _depth(state, "decoder.blocks."),
            "decoder_heads": width // 32,
        }
    if channels != 3:
        fields |= {
            "mean": (sum(MAEConfig.mean) / 3,) * channels,
            "std": (sum(MAEConfig.std) / 3,) * channels,
        }
    return MAEConfig(**fields)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix))


def adapt(state: dict[str, Tensor], stored: MAEConfig, wanted: MAEConfig) -> dict[str, Tensor]:
    """`state` for the channels and the image size of `wanted`: stem, prediction head and both positions."""
    state = dict(state)
    if stored.in_channels != wanted.in_channels:
        state["encoder.patch_embed.proj.weight"] = adapt_stem(
            state["encoder.patch_embed.proj.weight"], wanted.in_channels
        )
        for name in ("decoder.pred.weight", "decoder.pred.bias"):
            if name in state:
                state[name] = adapt_head(state[name], stored.in_channels, wanted.in_channels)
    if stored.grid != wanted.grid:
        for name in ("encoder.pos_embed", "decoder.pos_embed"):
            if name in state:
                state[name] = interpolate_positions(
                    state[name], stored.grid, wanted.grid, wanted.pos_interp
                )
    return state


LAYOUT = Layout(
    keymap=KEYMAP, to_theirs=to_theirs, from_theirs=from_theirs, infer=infer, adapt=adapt
)
