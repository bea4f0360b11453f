"""MAE's weights elsewhere: transformers' `vit_mae`, timm's `.mae` and the authors' checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.config_json import pixels, positive, read
from ssl_core.hub.encoders import (
    BLOCK,
    BLOCK_IN_MEMORY,
    CLASSIFIERS,
    PIPED,
    VIT,
    VIT_FIXED,
    VIT_IN_MEMORY,
    VIT_NAMES,
    VIT_TIMM,
    depth_of,
    encoder_state,
    mlp_ratio,
    timm_vit,
    vit_sizes,
    vit_to_theirs,
)
from ssl_core.hub.keymap import KeyMap, Row, prefixed
from ssl_core.hub.layout import Layout
from ssl_core.hub.resize import pixels as pixel_head
from ssl_core.hub.resize import positions, stem
from ssl_mae.config import MAEConfig

DECODER: tuple[Row, ...] = (
    ("decoder.mask_token", "decoder.mask_token"),
    ("decoder.pos_embed", "decoder.decoder_pos_embed"),
    ("decoder.embed.{w}", "decoder.decoder_embed.{w}"),
    ("decoder.norm.{w}", "decoder.decoder_norm.{w}"),
    ("decoder.pred.{w}", "decoder.decoder_pred.{w}"),
)
"""Around the blocks of transformers' decoder."""
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
        *prefixed((*VIT, *VIT_IN_MEMORY), ours="encoder."),
        # timm and the authors
        *prefixed(VIT_TIMM, ours="encoder."),
        ("decoder.mask_token", "mask_token"),
        *((ours, str(theirs).removeprefix("decoder.")) for ours, theirs in DECODER[1:]),
        *((BLOCKS + name, "decoder_blocks.{i}." + name) for name, _ in BLOCK),
    ),
    drop=CLASSIFIERS,
)

NAMES = {
    **VIT_NAMES,
    "decoder_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
}
"""Our config fields and transformers' names for the same value."""
DEFAULTS = {"layer_norm_eps": 1e-12, "norm_pix_loss": False}
"""Where transformers' defaults for absent keys are not ours."""


def to_theirs(config: MAEConfig) -> dict[str, Any]:
    """config.json of transformers' ViTMAEForPreTraining."""
    more = {theirs: getattr(config, ours) for ours, theirs in NAMES.items() if ours not in VIT_NAMES}
    hidden = round(config.decoder_dim * config.mlp_ratio)
    return vit_to_theirs("vit_mae", "ViTMAEForPreTraining", config, decoder_intermediate_size=hidden, **more)


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> MAEConfig:
    """Our config of a transformers folder, a MAE's or a ViT's; the recipe's fields keep the paper's
    values, and a ViT's decoder is the paper's.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    alone = values.get("model_type") == "vit"
    known = read(values, "vit_mae", "vit", names=VIT_NAMES if alone else NAMES, fixed=VIT_FIXED, by="MAE")
    defaults = {"layer_norm_eps": 1e-12} if alone else DEFAULTS
    config = from_dict(MAEConfig, {**defaults, **known, **pixels(MAEConfig, values, preprocessor)})
    if alone:
        return dataclasses.replace(config, mlp_ratio=positive(values, "intermediate_size", 3072) / config.dim)
    # transformers has two hidden widths; we have one ratio, for encoder and decoder
    hidden = positive(values, "intermediate_size", 3072), positive(values, "decoder_intermediate_size", 2048)
    widths = config.dim, config.decoder_dim
    for ratio in (hidden[0] / widths[0], hidden[1] / widths[1]):
        if hidden == tuple(round(width * ratio) for width in widths):
            return dataclasses.replace(config, mlp_ratio=ratio)
    raise ConfigError("intermediate_size and decoder_intermediate_size have different ratios: use transformers")


def infer(state: Mapping[str, Tensor]) -> MAEConfig:
    """Config of an author's or timm's checkpoint, from shapes.

    Heads are 64 wide (80 at ViT-H), 32 in the decoder. Raises ConfigError when the tensors are not
    a MAE's.
    """
    fields = {**vit_sizes(MAEConfig, state, what="MAE"), "mlp_ratio": mlp_ratio(state, what="MAE")}
    if fields["dim"] == 1280:
        fields["heads"] = 16
    if (embed := state.get("decoder.embed.weight")) is not None:
        if embed.ndim != 2:
            raise ConfigError(f"the checkpoint is not a MAE: decoder.embed.weight has the shape {tuple(embed.shape)}")
        width = embed.shape[0]
        fields |= {"decoder_dim": width, "decoder_heads": width // 32}
        fields["decoder_depth"] = depth_of(state, "decoder.blocks.")
    return MAEConfig(**fields)


def to_transformers(state: Mapping[str, Tensor], config: MAEConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' ViTModel: the encoder alone, which sees every
    patch."""
    return encoder_state(state, VIT), vit_to_theirs("vit", "ViTModel", config)


def to_timm(state: Mapping[str, Tensor], config: MAEConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of a timm model with the features of `encode`, for
    `create_model("local-dir:…")`.

    Raises ConfigError for an epsilon other than timm's.
    """
    return encoder_state(state, VIT_TIMM), timm_vit(config)


OTHERS = (
    "transformers reads it as `ViTMAEForPreTraining`, which hides random patches. For features, write the encoder "
    "alone: `ssl-mae export {name} vit --to transformers`. Then transformers has the same: "
    f"`{PIPED.replace('{name}', 'vit')}`."
)
"""For the model card."""
LAYOUTS = {
    "mae": Layout(
        keymap=KEYMAP,
        to_theirs=to_theirs,
        from_theirs=from_theirs,
        infer=infer,
        resize=(
            (r"encoder\.patch_embed\.proj\.weight", stem),
            (r"(encoder|decoder)\.pos_embed", positions),
            (r"decoder\.pred\.(weight|bias)", pixel_head),
        ),
        heads=("decoder.",),
        head_fields=("decoder_dim", "decoder_depth", "decoder_heads"),
        recipe=("mask_ratio", "norm_pix_loss", "crop_pct", "crop_scale", "flip", "turn"),
        others={"vit_mae": ("transformers", None, OTHERS)},
        exports={"transformers": to_transformers, "timm": to_timm},
    )
}
