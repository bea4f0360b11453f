"""BEiT's weights elsewhere: transformers' `beit`, the authors' checkpoints and timm's.

The tokenizer's are in `convert_dvae.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_beit import convert_dvae
from ssl_beit.config import BEiTConfig
from ssl_beit.positions import interpolate_table
from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.config_json import pixels, positive, read, written
from ssl_core.hub.encoders import BLOCK, BLOCK_IN_MEMORY, VIT_NAMES, depth_of, encoder_state, mlp_ratio
from ssl_core.hub.keymap import KeyMap, Row, prefixed, same
from ssl_core.hub.layout import OPENED, Layout
from ssl_core.hub.resize import stem

TABLE = "rel_pos_bias.relative_position_bias_table"
IN_BLOCK = "relative_position_bias.relative_position_bias_table"


def with_biases(rows: tuple[Row, ...], query: str, value: str, table: str) -> tuple[Row, ...]:
    """A ViT block's rows as BEiT has them: no bias of the keys, LayerScale, a table of its own."""
    ((qkv, parts),) = (row for row in rows if row[0] == "attn.qkv.{w}")
    return (
        *(row for row in rows if row[0] != qkv),
        ("attn.qkv.weight", tuple(part.replace("{w}", "weight") for part in parts)),
        ("attn.q_bias", query),
        ("attn.v_bias", value),
        ("ls1.gamma", "lambda_1"),
        ("ls2.gamma", "lambda_2"),
        (TABLE, table),
    )


ATTENTION = "attention.attention."
ON_DISK = with_biases(BLOCK, ATTENTION + "query.bias", ATTENTION + "value.bias", ATTENTION + IN_BLOCK)
"""A block as every file on disk holds it."""
IN_MEMORY = with_biases(BLOCK_IN_MEMORY, "attention.q_proj.bias", "attention.v_proj.bias", IN_BLOCK)
"""The same block as transformers 5 names it in memory."""
TIMM: tuple[Row, ...] = (
    *same(*(name for name, _ in BLOCK if name != "attn.qkv.{w}")),
    *same("attn.qkv.weight", "attn.q_bias", "attn.v_bias"),
    ("ls1.gamma", "gamma_1"),
    ("ls2.gamma", "gamma_2"),
    (TABLE, "attn.relative_position_bias_table"),
)
"""The same block as timm and the authors name it."""

MASK_TOKEN: Row = ("mask_token", "embeddings.mask_token")
MODEL: tuple[Row, ...] = (
    ("cls_token", "embeddings.cls_token"),
    ("patch_embed.proj.{w}", "embeddings.patch_embeddings.projection.{w}"),
    (TABLE, f"encoder.{IN_BLOCK}"),
    *prefixed(ON_DISK, ours="blocks.{i}.", theirs="encoder.layer.{i}."),
)
"""transformers' BeitModel on disk, without mask token and last LayerNorm."""
MODEL_IN_MEMORY: tuple[Row, ...] = (
    (TABLE, "shared_position_bias.relative_position_bias_table"),
    *prefixed(IN_MEMORY, ours="blocks.{i}.", theirs="layers.{i}."),
)
AROUND = same("cls_token", "mask_token", "patch_embed.proj.{w}", "norm.{w}", "fc_norm.{w}", TABLE)
"""Around the blocks of timm's and the authors' BEiT."""
NORMS: tuple[Row, ...] = (("norm.{w}", "layernorm.{w}"), ("fc_norm.{w}", "pooler.layernorm.{w}"))

KEYMAP = KeyMap(
    rows=(
        *prefixed((*MODEL, MASK_TOKEN), ours="encoder.", theirs="beit."),
        ("encoder.norm.{w}", "layernorm.{w}"),
        ("encoder.fc_norm.{w}", "beit.pooler.layernorm.{w}"),
        *same("lm_head.{w}"),
    ),
    also=(
        *prefixed(MODEL_IN_MEMORY, ours="encoder.", theirs="beit."),
        # BeitModel, an encoder without prefix
        *prefixed((*MODEL, MASK_TOKEN, *MODEL_IN_MEMORY), ours="encoder."),
        ("encoder.norm.{w}", "beit.layernorm.{w}"),
        ("encoder.fc_norm.{w}", "pooler.layernorm.{w}"),
        # the authors and timm
        *prefixed((*AROUND, *prefixed(TIMM, ours="blocks.{i}.", theirs="blocks.{i}.")), ours="encoder."),
    ),
    drop=(r".*relative_position_index", r"(classifier|head)\.(weight|bias)"),
)

NAMES = {
    **VIT_NAMES,
    "layer_scale": "layer_scale_init_value",
    "drop_path": "drop_path_rate",
    "shared_bias": "use_shared_relative_position_bias",
}
"""Our config fields and transformers' names for the same value."""
DEFAULTS = {"layer_norm_eps": 1e-12, "shared_bias": False}
"""Where transformers' defaults for absent keys are not ours."""
FIXED = {"hidden_act": "gelu", "use_absolute_position_embeddings": False}
"""transformers' options of which we have one value."""


def to_theirs(config: BEiTConfig) -> dict[str, Any]:
    """config.json of transformers' BeitForMaskedImageModeling, of BeitModel without a head."""
    has_head = config.vocab > 0
    more = {
        "image_size": config.image_size,
        "num_channels": config.in_channels,
        "intermediate_size": round(config.dim * config.mlp_ratio),
        "use_mask_token": has_head,
        "use_relative_position_bias": not config.shared_bias,
        # With it transformers has its last norm behind the mean, or leaves it to the head.
        "use_mean_pooling": has_head or config.final_norm == "pooled",
        **({"vocab_size": config.vocab} if has_head else {}),
    }
    architecture = "BeitForMaskedImageModeling" if has_head else "BeitModel"
    return written("beit", architecture, config, NAMES, **FIXED, **more)


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> BEiTConfig:
    """Our config of a transformers folder, which holds no tokenizer.

    A fine-tuned model is an encoder alone. Raises ConfigError for another architecture or an option
    that we do not have.
    """
    # A model has one shared table, or one in each block. We do not read one that has none.
    shared = values.get("use_shared_relative_position_bias", False)
    tables = {"use_relative_position_bias": not shared}
    known = read({"use_relative_position_bias": False, **values}, "beit", names=NAMES, fixed=FIXED | tables, by="BEiT")
    # transformers' image processor for BEiT has mean and standard deviation 0.5 by default.
    half = (0.5,) * positive(values, "num_channels", 3)
    seen = pixels(BEiTConfig, values, {"image_mean": half, "image_std": half, **preprocessor})

    # Only a pretrained model has a mask token. A fine-tuned one may read CLS instead of the mean.
    pretrained = values.get("use_mask_token", False) is True
    pooled = values.get("use_mean_pooling", True) is True and not pretrained
    head = {
        "vocab": values.get("vocab_size", 8192) if pretrained else 0,
        "final_norm": "pooled" if pooled else "tokens",
        "pool": "mean" if pooled or pretrained else "cls",
    }
    config = published(**DEFAULTS | known | seen | head)
    return dataclasses.replace(config, mlp_ratio=positive(values, "intermediate_size", 3072) / config.dim)


def published(**fields: Any) -> BEiTConfig:
    """The config of a checkpoint, which holds no tokenizer and does not say how it was masked.

    Masks are the paper's: 75 of 196 patches in blocks of 16 or more, and the same share of others.
    """
    unmasked = {"tokenizer": None, "tokenizer_hidden": 0, "mask_patches": 1, "mask_block": 1}
    config = from_dict(BEiTConfig, fields | unmasked)
    share = config.patches / 196
    masks = {"mask_patches": max(1, round(75 * share)), "mask_block": max(1, round(16 * share))}
    return dataclasses.replace(config, **masks)


def infer(state: Mapping[str, Tensor]) -> BEiTConfig:
    """Config of the authors' or timm's checkpoint, from shapes.

    The table says the heads and the grid, which is taken to be square. Raises ConfigError when the
    tensors are not a BEiT's.
    """
    tables = [f"encoder.{TABLE}", f"encoder.blocks.0.{TABLE}"]
    table = next((name for name in tables if name in state), tables[0])
    patches = "encoder.patch_embed.proj.weight"
    for key, ndim in ((patches, 4), (table, 2)):
        if key not in state or state[key].ndim != ndim:
            raise ConfigError(f"the checkpoint is not a BEiT: it holds no {key} of {ndim} dimensions")
    dim, channels, patch, _ = state[patches].shape
    offsets, heads = state[table].shape
    # A grid of side² patches has (2 side − 1)² offsets, and CLS three rows.
    side = (round(max(offsets - 3, 0) ** 0.5) + 1) // 2
    if (2 * side - 1) ** 2 + 3 != offsets:
        raise ConfigError(f"the checkpoint's {table} of {offsets} rows is not of a square grid")
    # The authors' BEiT has mean and standard deviation 0.5.
    half = (0.5,) * channels
    seen = {"patch_size": patch, "image_size": side * patch, "in_channels": channels, "mean": half, "std": half}
    sizes = {"dim": dim, "heads": heads, "depth": depth_of(state, "encoder.blocks."), "shared_bias": table == tables[0]}
    head = {
        "vocab": state["lm_head.weight"].shape[0] if "lm_head.weight" in state else 0,
        "final_norm": "pooled" if "encoder.fc_norm.weight" in state else "tokens",
    }
    return published(**seen, **sizes, **head, mlp_ratio=mlp_ratio(state, what="BEiT"))


def to_transformers(state: Mapping[str, Tensor], config: BEiTConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' BeitModel: the encoder alone.

    Its last_hidden_state is normalised, as ours is. In our folders the norm belongs to the head.
    """
    alone = dataclasses.replace(config, vocab=0, tokenizer=None, tokenizer_hidden=0)
    return encoder_state(state, (*MODEL, *NORMS)), to_theirs(alone)


def resized_table(table: Tensor, stored: BEiTConfig, wanted: BEiTConfig) -> Tensor:
    """A table of relative positions (rows, heads) for the grid of another config."""
    return interpolate_table(table, stored.grid, wanted.grid)


LAYOUTS = {
    "beit": Layout(
        keymap=KEYMAP,
        to_theirs=to_theirs,
        from_theirs=from_theirs,
        infer=infer,
        resize=(
            (r"encoder\.patch_embed\.proj\.weight", stem),
            (r"encoder\..*relative_position_bias_table", resized_table),
            *convert_dvae.LAYOUT.resize,
        ),
        recipe=("drop_path", "mask_patches", "mask_block", "crop_pct", "crop_scale", "flip", "turn", "jitter"),
        others={"beit": ("transformers", "image-feature-extraction", OPENED)},
        exports={"transformers": to_transformers},
    ),
    "dvae": convert_dvae.LAYOUT,
}
