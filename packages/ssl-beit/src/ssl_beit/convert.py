"""Weights elsewhere: transformers' `beit` and `flava_image_codebook`, the authors' and timm's BEiT, DALL-E's pickles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ssl_core.hub.backbone import positive
from torch import Tensor

from ssl_beit.config import BEiTConfig, DVAEConfig
from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.keymap import BLOCK, BLOCK_IN_MEMORY, KeyMap, Row, prefixed
from ssl_core.hub.layout import Layout, check_shapes
from ssl_core.hub.resize import adapt_head, adapt_stem
from ssl_core.hub.weights_file import WeightsError, load_pickle

if TYPE_CHECKING:
    from ssl_beit.beit import BEiT
    from ssl_beit.dvae import DVAE

GROUPS = range(1, 5)
CONVOLUTIONS = range(1, 5)

FLAVA: tuple[Row, ...] = (
    ("blocks.input.{w}", "blocks.input.{w}"),
    ("blocks.output.conv.{w}", "blocks.output.conv.{w}"),
    *((f"blocks.group_{g}.block_{{i}}.id_path.{{w}}", f"blocks.group_{g}.group.block_{{i}}.id_path.{{w}}")
      for g in GROUPS),
    *((f"blocks.group_{g}.block_{{i}}.res_path.conv_{c}.{{w}}",
       f"blocks.group_{g}.group.block_{{i}}.res_path.path.conv_{c}.{{w}}") for g in GROUPS for c in CONVOLUTIONS),
)  # fmt: skip
"""The encoder as transformers' FlavaImageCodebook names it."""

_LAYERS = ("blocks.input", "blocks.output.conv", *(f"blocks.group_{g}.block_{{i}}.{name}" for g in GROUPS for name in (
    "id_path", *(f"res_path.conv_{c}" for c in CONVOLUTIONS))))  # fmt: skip

DALLE: tuple[Row, ...] = tuple(
    (f"{part}.{layer}.{ours}", f"{part}.{layer}.{theirs}")
    for part in ("encoder", "decoder") for layer in _LAYERS for ours, theirs in (("weight", "w"), ("bias", "b"))
)  # fmt: skip
"""Both parts as DALL-E's code names them, the part in front: there each is a file."""

DVAE_KEYMAP = KeyMap(
    rows=prefixed(FLAVA, ours="average.encoder."),
    also=(*prefixed(DALLE, ours="average."), *prefixed(FLAVA, ours="average.encoder.", theirs="image_codebook.")),
)


def dvae_to_theirs(config: DVAEConfig) -> dict[str, Any]:
    """config.json of transformers' FlavaImageCodebook, which is the encoder."""
    return {
        "model_type": "flava_image_codebook",
        "architectures": ["FlavaImageCodebook"],
        "dtype": "float32",
        "num_groups": 4,
        "input_channels": config.in_channels,
        "num_blocks_per_group": config.blocks,
        "hidden_size": config.hidden,
        "vocab_size": config.vocab,
    }


def dvae_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> DVAEConfig:
    """Our config of transformers' FlavaImageCodebook. Raises ConfigError for another architecture."""
    if values.get("model_type") != "flava_image_codebook":
        raise ConfigError(f"model_type is {values.get('model_type')!r}: DVAE reads 'flava_image_codebook'")
    names = {"hidden": "hidden_size", "blocks": "num_blocks_per_group", "vocab": "vocab_size"}
    channels = positive(values, "input_channels", 3)
    if values.get("num_groups", 4) != 4:
        raise ConfigError(f"num_groups = {values['num_groups']!r} is not supported, only 4")
    known = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
    return from_dict(DVAEConfig, {**known, **_plain_pixels(channels)})


def dvae_infer(state: Mapping[str, Tensor]) -> DVAEConfig:
    """Config of DALL-E's tensors, from their shapes. Raises ConfigError when they are not a dVAE's."""
    stem, output, init = (
        "average.encoder.blocks.input.weight", "average.encoder.blocks.output.conv.weight",
        "average.decoder.blocks.input.weight",
    )  # fmt: skip
    for key in (stem, output):
        if key not in state or state[key].ndim != 4:
            raise ConfigError(f"the checkpoint is not a dVAE: it holds no {key} of four dimensions")
    blocks = {key.split(".")[4] for key in state if key.startswith("average.encoder.blocks.group_1.block_")}
    fields: dict[str, Any] = {
        "hidden": state[stem].shape[0], "vocab": state[output].shape[0], "blocks": len(blocks),
        **_plain_pixels(state[stem].shape[1]),
    }  # fmt: skip
    if init in state:
        fields["decoder_init"] = state[init].shape[0]
    return DVAEConfig(**fields)


def _plain_pixels(channels: int) -> dict[str, Any]:
    return {"in_channels": channels, "mean": (0.0,) * channels, "std": (1.0,) * channels}


def dvae_adapt(state: dict[str, Tensor], stored: DVAEConfig, wanted: DVAEConfig) -> dict[str, Tensor]:
    """`state` for the channels of `wanted`. Raises WeightsMismatch when it is not of `stored`'s sizes."""
    expected = {
        f"{part}.encoder.blocks.input.weight": (stored.hidden, stored.in_channels, 7, 7)
        for part in ("average", "online")
    }
    check_shapes(state, expected)
    for prefix in ("average.", "online."):
        state = _adapt_tokenizer(state, prefix, stored.in_channels, wanted.in_channels)
    return state


def _adapt_tokenizer(state: dict[str, Tensor], prefix: str, old: int, new: int) -> dict[str, Tensor]:
    """The first and the last layer of a tokenizer for another number of channels."""
    state = dict(state)
    stem = f"{prefix}encoder.blocks.input.weight"
    if old != new and stem in state:
        state[stem] = adapt_stem(state[stem], new)
    for name in (f"{prefix}decoder.blocks.output.conv.{kind}" for kind in ("weight", "bias")):
        if old != new and name in state:
            state[name] = adapt_head(state[name], old, new)  # rows are (μ, ln b) x channels
    return state


DVAE_LAYOUT = Layout(
    keymap=DVAE_KEYMAP, to_theirs=dvae_to_theirs, from_theirs=dvae_from_theirs, infer=dvae_infer, adapt=dvae_adapt,
    copies={"online.": "average."},
    recipe=("kl_weight", "kl_warmup", "temperature", "temperature_decay", "ema", "crop_pct", "crop_scale", "flip"),
)  # fmt: skip


class Shell:
    """Stands for a class of a pickle: takes its attributes, has no code."""


SHELLS = (
    *(f"dall_e.{name}" for name in (
        "encoder.Encoder", "encoder.EncoderBlock", "decoder.Decoder", "decoder.DecoderBlock", "utils.Conv2d")),
    *(f"torch.nn.modules.{name}" for name in (
        "container.Sequential", "activation.ReLU", "linear.Identity", "pooling.MaxPool2d", "upsampling.Upsample")),
)  # fmt: skip
"""The classes in DALL-E's `encoder.pkl` and `decoder.pkl`, which are pickles of whole modules."""


def is_dalle(folder: Path) -> bool:
    """Whether a folder holds DALL-E's `encoder.pkl`."""
    return (folder / "encoder.pkl").is_file()


def read_dalle(folder: Path) -> dict[str, Tensor]:
    """The tensors of DALL-E's `encoder.pkl` and `decoder.pkl` under their names, the part in front.

    No class of the pickles is imported and nothing in them runs: modules become shells without code, anything else than
    those of `SHELLS` is refused. Raises WeightsError, FileNotFoundError.
    """
    state = {}
    allowed = [*((Shell, name) for name in SHELLS), (set, "__builtin__.set")]
    for part in ("encoder", "decoder"):
        path = folder / f"{part}.pkl"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {path.name}: DALL-E's tokenizer is two files")
        with torch.serialization.safe_globals(allowed):
            root = load_pickle(path)
        if not isinstance(root, Shell):
            raise WeightsError(f"{path} holds {type(root).__name__}, not DALL-E's {part}")
        state |= {f"{part}.{name}": tensor.float() for name, tensor in _tensors(root, path)}
    return state


def _tensors(shell: Shell, path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a module's parameters and of those below it."""
    content = vars(shell)
    for name, tensor in dict(content.get("_parameters") or {}).items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: {name} is {type(tensor).__name__}, not a tensor")
        yield name, tensor.detach()
    for name, child in dict(content.get("_modules") or {}).items():
        if not isinstance(child, Shell):
            raise WeightsError(f"{path}: {name} is {type(child).__name__}, not a module")
        yield from ((f"{name}.{below}", tensor) for below, tensor in _tensors(child, path))


# BEiT

_BIASES = ("attention.attention.query.bias", "attention.attention.value.bias")
_BIASES_IN_MEMORY = ("attention.q_proj.bias", "attention.v_proj.bias")
_TABLE = "relative_position_bias_table"


def _beit_block(rows: tuple[Row, ...], biases: tuple[str, str], table: str) -> tuple[Row, ...]:
    """A block's rows without a fused bias, with the biases of queries and values, LayerScale and its own table."""
    [weights] = (theirs for ours, theirs in rows if ours == "attn.qkv.{w}")
    return (
        *(row for row in rows if row[0] != "attn.qkv.{w}"),
        ("attn.qkv.weight", tuple(name.replace("{w}", "weight") for name in weights)),
        ("attn.q_bias", biases[0]),
        ("attn.v_bias", biases[1]),
        ("ls1.gamma", "lambda_1"),
        ("ls2.gamma", "lambda_2"),
        (f"rel_pos_bias.{_TABLE}", table),
    )


BEIT_BLOCK = _beit_block(BLOCK, _BIASES, f"attention.attention.relative_position_bias.{_TABLE}")
"""A block as every file on disk holds it."""
BEIT_BLOCK_IN_MEMORY = _beit_block(BLOCK_IN_MEMORY, _BIASES_IN_MEMORY, f"relative_position_bias.{_TABLE}")
BEIT_BLOCK_TIMM: tuple[Row, ...] = (
    *((name, name) for name, _ in BLOCK if name != "attn.qkv.{w}"),
    *((f"attn.{name}", f"attn.{name}") for name in ("qkv.weight", "q_bias", "v_bias")),
    ("ls1.gamma", "gamma_1"),
    ("ls2.gamma", "gamma_2"),
    (f"rel_pos_bias.{_TABLE}", f"attn.{_TABLE}"),
)

_EMBEDDINGS: tuple[Row, ...] = (
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("patch_embed.proj.{w}", "embeddings.patch_embeddings.projection.{w}"),
)
BEIT_MODEL: tuple[Row, ...] = (
    *_EMBEDDINGS,
    (f"rel_pos_bias.{_TABLE}", f"encoder.relative_position_bias.{_TABLE}"),
    *prefixed(BEIT_BLOCK, ours="blocks.{i}.", theirs="encoder.layer.{i}."),
)
"""transformers' BeitModel on disk, without its last LayerNorm."""
BEIT_IN_MEMORY: tuple[Row, ...] = (
    (f"rel_pos_bias.{_TABLE}", f"shared_position_bias.{_TABLE}"),
    *prefixed(BEIT_BLOCK_IN_MEMORY, ours="blocks.{i}.", theirs="layers.{i}."),
)

BEIT_KEYMAP = KeyMap(
    rows=(
        *prefixed(BEIT_MODEL, ours="encoder.", theirs="beit."),
        ("encoder.norm.{w}", "layernorm.{w}"),
        ("encoder.fc_norm.{w}", "beit.pooler.layernorm.{w}"),
        ("lm_head.{w}", "lm_head.{w}"),
    ),
    also=(
        *prefixed(BEIT_IN_MEMORY, ours="encoder.", theirs="beit."),
        *prefixed((*BEIT_MODEL, *BEIT_IN_MEMORY), ours="encoder."),
        ("encoder.norm.{w}", "beit.layernorm.{w}"),
        ("encoder.fc_norm.{w}", "pooler.layernorm.{w}"),
        # the authors and timm
        *((f"encoder.{name}", name) for name in ("cls_token", "mask_token", "patch_embed.proj.{w}", "norm.{w}")),
        ("encoder.fc_norm.{w}", "fc_norm.{w}"),
        (f"encoder.rel_pos_bias.{_TABLE}", f"rel_pos_bias.{_TABLE}"),
        *prefixed(BEIT_BLOCK_TIMM, ours="encoder.blocks.{i}.", theirs="blocks.{i}."),
    ),
    drop=(r".*relative_position_index", r"(classifier|head)\.(weight|bias)"),
)

NAMES = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "patch_size": "patch_size",
    "in_channels": "num_channels",
    "layer_norm_eps": "layer_norm_eps",
    "layer_scale": "layer_scale_init_value",
    "drop_path": "drop_path_rate",
    "shared_bias": "use_shared_relative_position_bias",
}
"""Our config fields and transformers' names for the same value."""

_DEFAULTS = {"layer_norm_eps": 1e-12, "shared_bias": False}
"""Where transformers' defaults for absent keys are not ours."""


def beit_to_theirs(config: BEiTConfig) -> dict[str, Any]:
    """config.json of transformers' BeitForMaskedImageModeling, of BeitModel for an encoder alone."""
    return {
        "model_type": "beit",
        "architectures": ["BeitForMaskedImageModeling" if config.vocab else "BeitModel"],
        "dtype": "float32",
        "image_size": config.image_size,
        "intermediate_size": round(config.dim * config.mlp_ratio),
        "hidden_act": "gelu",
        "use_mask_token": config.vocab > 0,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": not config.shared_bias,
        # with it transformers has its last norm behind the mean, or leaves it to the head
        "use_mean_pooling": config.vocab > 0 or config.final_norm == "pooled",
        **({"vocab_size": config.vocab} if config.vocab else {}),
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
    }


def beit_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> BEiTConfig:
    """Our config of a transformers folder, without a tokenizer; a fine-tuned model is an encoder alone.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    if values.get("model_type") != "beit":
        raise ConfigError(f"model_type is {values.get('model_type')!r}: BEiT reads 'beit'")
    channels = positive(values, "num_channels", 3)
    known = {ours: values[theirs] for ours, theirs in NAMES.items() if theirs in values}
    pretrained = values.get("use_mask_token", False) is True
    pooled = values.get("use_mean_pooling", True) is True and not pretrained
    pixels = {name: preprocessor.get(f"image_{name}", (0.5,) * channels) for name in ("mean", "std")}
    vocab = values.get("vocab_size", 8192) if pretrained else 0
    config = from_dict(BEiTConfig, {
        **_DEFAULTS, **known, **pixels, **_encoder_alone(vocab), "image_size": values.get("image_size", 224),
        "final_norm": "pooled" if pooled else "tokens", "pool": "mean" if pooled or pretrained else "cls",
        "mask_patches": 1, "mask_block": 1,
    })  # fmt: skip
    expected = {"hidden_act": "gelu", "use_absolute_position_embeddings": False,
                "use_relative_position_bias": not config.shared_bias}  # fmt: skip
    defaults = {"hidden_act": "gelu"}
    for key, value in expected.items():
        if values.get(key, defaults.get(key, False)) != value:
            raise ConfigError(f"{key} = {values.get(key, False)!r} is not supported: use transformers for this model")
    ratio = positive(values, "intermediate_size", 3072) / config.dim
    return with_masks(dataclasses.replace(config, mlp_ratio=ratio))


def with_masks(config: BEiTConfig) -> BEiTConfig:
    """Masks for a model that does not say how it was masked: the paper's 75 of 196 patches, and as many of others."""
    share = config.patches / 196
    return dataclasses.replace(config, mask_patches=max(1, round(75 * share)), mask_block=max(1, round(16 * share)))


def _encoder_alone(vocab: int) -> dict[str, Any]:
    return {"vocab": vocab, "tokenizer": None, "tokenizer_hidden": 0}


def beit_infer(state: Mapping[str, Tensor]) -> BEiTConfig:
    """Config of the authors' or timm's checkpoint, from shapes; heads are those of the table, the grid is square.

    Raises ConfigError when the tensors are not a BEiT's.
    """
    stem, mlp = "encoder.patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"
    tables = [f"encoder.rel_pos_bias.{_TABLE}", f"encoder.blocks.0.rel_pos_bias.{_TABLE}"]
    table = next((name for name in tables if name in state), tables[0])
    for key, ndim in ((stem, 4), (mlp, 2), (table, 2)):
        if key not in state or state[key].ndim != ndim:
            raise ConfigError(f"the checkpoint is not a BEiT: it holds no {key} of {ndim} dimensions")
    dim, channels, patch, _ = state[stem].shape
    offsets, heads = state[table].shape
    side = (round(max(offsets - 3, 0) ** 0.5) + 1) // 2
    if (2 * side - 1) ** 2 + 3 != offsets:
        raise ConfigError(f"the checkpoint's {table} of {offsets} rows is not of a square grid")
    vocab = state["lm_head.weight"].shape[0] if "lm_head.weight" in state else 0
    depths = [int(key.split(".")[2]) for key in state if key.startswith("encoder.blocks.")]
    return with_masks(BEiTConfig(
        dim=dim, depth=1 + max(depths), heads=heads, patch_size=patch, in_channels=channels, image_size=side * patch,
        mlp_ratio=state[mlp].shape[0] / dim, shared_bias=table == tables[0], mask_patches=1, mask_block=1,
        final_norm="pooled" if "encoder.fc_norm.weight" in state else "tokens", mean=(0.5,) * channels, std=(0.5,) * channels,
        **_encoder_alone(vocab),
    ))  # fmt: skip


def beit_adapt(state: dict[str, Tensor], stored: BEiTConfig, wanted: BEiTConfig) -> dict[str, Tensor]:
    """`state` for the channels and the image size of `wanted`: stem, tables and tokenizer.

    Raises WeightsMismatch when `state` is not of `stored`'s sizes.
    """
    from ssl_beit.beit import interpolate_table

    h, w = stored.grid
    stem = "encoder.patch_embed.proj.weight"
    tables = [key for key in state if key.endswith(_TABLE)]
    rows = ((2 * h - 1) * (2 * w - 1) + 3, stored.heads)
    check_shapes(state, {
        stem: (stored.dim, stored.in_channels, stored.patch_size, stored.patch_size),
        "encoder.blocks.0.mlp.fc1.weight": (round(stored.dim * stored.mlp_ratio), stored.dim),
        "tokenizer.encoder.blocks.input.weight": (stored.tokenizer_hidden, stored.in_channels, 7, 7),
        **dict.fromkeys(tables, rows),
    })  # fmt: skip
    state = _adapt_tokenizer(state, "tokenizer.", stored.in_channels, wanted.in_channels)
    if stored.in_channels != wanted.in_channels and stem in state:
        state[stem] = adapt_stem(state[stem], wanted.in_channels)
    for name in tables:
        state[name] = interpolate_table(state[name], stored.grid, wanted.grid)
    return state


BEIT_LAYOUT = Layout(
    keymap=BEIT_KEYMAP, to_theirs=beit_to_theirs, from_theirs=beit_from_theirs, infer=beit_infer, adapt=beit_adapt,
    recipe=("drop_path", "mask_patches", "mask_block", "crop_pct", "crop_scale", "flip", "jitter"),
)  # fmt: skip


def to_transformers(method: DVAE | BEiT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of an encoder alone: FlavaImageCodebook of a tokenizer, BeitModel of BEiT.

    BeitModel's last_hidden_state is then normalised as ours is, which it is not where the head has the norm.
    """
    from ssl_beit.dvae import DVAE

    config = method.config
    if isinstance(method, DVAE):
        return DVAE_KEYMAP.to_theirs(method.state_dict())[0], dvae_to_theirs(config)
    rows = [*BEIT_MODEL, ("norm.{w}", "layernorm.{w}"), ("fc_norm.{w}", "pooler.layernorm.{w}")]
    state = {name: tensor for name, tensor in method.encoder.state_dict().items() if name != "mask_token"}
    alone = dataclasses.replace(config, **_encoder_alone(0))
    return KeyMap(rows=tuple(rows)).to_theirs(state)[0], beit_to_theirs(alone)


EXPORTS = {"transformers": to_transformers}
