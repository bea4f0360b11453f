"""MAE's weights elsewhere: transformers' `vit_mae`, timm's `.mae` and the authors' checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.backbone import pixels, positive, statistics, timm_vit
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
from ssl_core.hub.pretrained import Layout, check_shapes
from ssl_core.hub.stem import adapt_head, adapt_stem
from ssl_core.patches import interpolate_positions, square_grid
from ssl_mae.config import MAEConfig

if TYPE_CHECKING:
    from ssl_mae.mae import MAE

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
        *((ours, theirs.removeprefix("decoder.")) for ours, theirs in DECODER[1:] if isinstance(theirs, str)),
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
        "intermediate_size": round(config.dim * config.mlp_ratio),
        "decoder_intermediate_size": round(config.decoder_dim * config.mlp_ratio),
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
    known = {ours: values[theirs] for ours, theirs in NAMES.items() if theirs in values}
    config = from_dict(MAEConfig, {**_DEFAULTS, **known, **pixels(MAEConfig, values, preprocessor)})
    for key, expected in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if values.get(key, expected) != expected:
            raise ConfigError(f"{key} = {values[key]!r} is not supported: use transformers for this model")
    hidden = positive(values, "intermediate_size", 3072), positive(values, "decoder_intermediate_size", 2048)
    widths = config.dim, config.decoder_dim
    for ratio in (hidden[0] / widths[0], hidden[1] / widths[1]):
        if hidden == tuple(round(width * ratio) for width in widths):
            return dataclasses.replace(config, mlp_ratio=ratio)
    raise ConfigError("intermediate_size and decoder_intermediate_size have different ratios: use transformers")


_DEFAULTS = {"layer_norm_eps": 1e-12, "norm_pix_loss": False}
"""Where transformers' defaults for absent keys are not ours."""


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
    for key, ndim in zip((*needed, "decoder.embed.weight"), (4, 3, 2, 2), strict=True):
        if key in state and state[key].ndim != ndim:
            raise ConfigError(f"the checkpoint is not a MAE: {key} has the shape {tuple(state[key].shape)}")
    dim, channels, patch, _ = state[needed[0]].shape
    try:
        rows, _ = square_grid(state[needed[1]].shape[1] - 1)
    except ValueError as error:
        raise ConfigError(f"the checkpoint says no image size: {error}") from error
    fields: dict[str, Any] = {
        "dim": dim,
        "depth": _depth(state, "encoder.blocks."),
        "heads": 16 if dim == 1280 else dim // 64,
        "patch_size": patch,
        "image_size": rows * patch,
        "mlp_ratio": state[needed[2]].shape[0] / dim,
        **statistics(MAEConfig, channels),
    }
    if "decoder.embed.weight" in state:
        width = state["decoder.embed.weight"].shape[0]
        fields |= {
            "decoder_dim": width,
            "decoder_depth": _depth(state, "decoder.blocks."),
            "decoder_heads": width // 32,
        }
    return MAEConfig(**fields)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max((int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)), default=-1)


def adapt(state: dict[str, Tensor], stored: MAEConfig, wanted: MAEConfig) -> dict[str, Tensor]:
    """`state` for the channels and the image size of `wanted`: stem, prediction head and both positions.

    Raises WeightsMismatch when `state` is not of `stored`'s sizes.
    """
    check_shapes(state, _shapes(stored))
    state = dict(state)
    if stored.in_channels != wanted.in_channels:
        stem = "encoder.patch_embed.proj.weight"
        if stem in state:
            state[stem] = adapt_stem(state[stem], wanted.in_channels)
        for name in ("decoder.pred.weight", "decoder.pred.bias"):
            if name in state:
                state[name] = adapt_head(state[name], stored.in_channels, wanted.in_channels)
    if stored.grid != wanted.grid:
        for name in ("encoder.pos_embed", "decoder.pos_embed"):
            if name in state:
                state[name] = interpolate_positions(state[name], stored.grid, wanted.grid, wanted.pos_interp)
    return state


def _shapes(config: MAEConfig) -> dict[str, tuple[int, ...]]:
    """Shapes that between them hold every width of a network, by name."""
    dim, width, patch, channels = config.dim, config.decoder_dim, config.patch_size, config.in_channels
    return {
        "encoder.patch_embed.proj.weight": (dim, channels, patch, patch),
        "encoder.pos_embed": (1, 1 + config.patches, dim),
        "encoder.blocks.0.mlp.fc1.weight": (round(dim * config.mlp_ratio), dim),
        "decoder.embed.weight": (width, dim),
        "decoder.pos_embed": (1, 1 + config.patches, width),
        "decoder.pred.weight": (patch * patch * channels, width),
        "decoder.pred.bias": (patch * patch * channels,),
    }


LAYOUT = Layout(
    keymap=KEYMAP, to_theirs=to_theirs, from_theirs=from_theirs, infer=infer, adapt=adapt,
    recipe=("mask_ratio", "norm_pix_loss", "crop_pct", "crop_scale", "flip"),
)  # fmt: skip


def to_transformers(method: MAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' ViTModel: the encoder alone, which sees every patch."""
    theirs = to_theirs(method.config)
    kept = {key: value for key, value in theirs.items() if not key.startswith(("decoder_", "mask_", "norm_pix"))}
    return _encoder(method, VIT), {**kept, "model_type": "vit", "architectures": ["ViTModel"]}


def to_timm(method: MAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of a timm model whose features are those of `encode`, for `create_model("local-dir:…")`.

    Raises ConfigError for an epsilon other than timm's.
    """
    return _encoder(method, VIT_TIMM), timm_vit(method.config)


def _encoder(method: MAE, rows: tuple[Row, ...]) -> dict[str, Tensor]:
    return KeyMap(rows=rows).to_theirs(method.encoder.state_dict())[0]


EXPORTS = {"transformers": to_transformers, "timm": to_timm}
"""What `ssl-mae export --to` writes beside our own layout: method -> (tensors, config.json)."""
