"""Weights of the encoders that several packages share: transformers' `vit` and `resnet`, timm, torchvision, authors.

A ViT is written as transformers' ViTModel. A ResNet is written under torchvision's names, with a config.json that timm
reads; transformers' own ResNetModel has no small-image stem, so that layout is an export (specification §12).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from ssl_core.config import BackboneConfig, ConfigError, from_dict
from ssl_core.hub.keymap import VIT, VIT_IN_MEMORY, VIT_TIMM, KeyMap, Row, prefixed
from ssl_core.hub.pretrained import check_shapes
from ssl_core.hub.stem import adapt_stem
from ssl_core.patches import interpolate_positions, square_grid
from ssl_core.resnet import LAYERS, BasicBlock, Bottleneck

C = TypeVar("C", bound=BackboneConfig)

RESNET: tuple[Row, ...] = (
    ("conv1.weight", "conv1.weight"),
    ("bn1.{b}", "bn1.{b}"),
    *((name, name) for s in range(1, 5) for j in range(1, 4) for name in (
        f"layer{s}.{{i}}.conv{j}.weight", f"layer{s}.{{i}}.bn{j}.{{b}}")),
    *((name, name) for s in range(1, 5) for name in (
        f"layer{s}.{{i}}.downsample.0.weight", f"layer{s}.{{i}}.downsample.1.{{b}}")),
)  # fmt: skip
"""torchvision's ResNet without its classifier; timm's and the authors' too."""

RESNET_TRANSFORMERS: tuple[Row, ...] = (
    ("conv1.weight", "embedder.embedder.convolution.weight"),
    ("bn1.{b}", "embedder.embedder.normalization.{b}"),
    *(row for s in range(4) for j in range(3) for row in (
        (f"layer{s + 1}.{{i}}.conv{j + 1}.weight", f"encoder.stages.{s}.layers.{{i}}.layer.{j}.convolution.weight"),
        (f"layer{s + 1}.{{i}}.bn{j + 1}.{{b}}", f"encoder.stages.{s}.layers.{{i}}.layer.{j}.normalization.{{b}}"))),
    *(row for s in range(4) for row in (
        (f"layer{s + 1}.{{i}}.downsample.0.weight", f"encoder.stages.{s}.layers.{{i}}.shortcut.convolution.weight"),
        (f"layer{s + 1}.{{i}}.downsample.1.{{b}}", f"encoder.stages.{s}.layers.{{i}}.shortcut.normalization.{{b}}"))),
)  # fmt: skip
"""transformers' ResNetModel."""

CLASSIFIERS = (r"(fc|head|classifier(\.1)?)\.(weight|bias)", r"pooler\.dense\.(weight|bias)")
"""What a supervised checkpoint has behind its encoder, and an encoder of ours has not."""


def backbone_keymap(ours: str = "encoder.", *, rows: tuple[Row, ...] = (), also: tuple[Row, ...] = ()) -> KeyMap:
    """The map of a method whose published encoder is named `ours`; `also` are the spellings of its authors' files.

    `rows` are written to model.safetensors beside the encoder.
    """
    return KeyMap(
        rows=(*prefixed(VIT, ours=ours), *prefixed(RESNET, ours=ours), *rows),
        also=(
            *prefixed(VIT_IN_MEMORY, ours=ours),
            *prefixed(VIT_TIMM, ours=ours),
            *prefixed((*VIT, *VIT_IN_MEMORY), ours=ours, theirs="vit."),
            *prefixed(RESNET_TRANSFORMERS, ours=ours),
            *prefixed(RESNET_TRANSFORMERS, ours=ours, theirs="resnet."),
            *also,
        ),
        drop=CLASSIFIERS,
    )


def to_theirs(config: BackboneConfig) -> dict[str, Any]:
    """config.json: transformers' for a ViT; for a ResNet what timm's `create_model("local-dir:…")` reads."""
    if config.is_vit:
        return {
            "model_type": "vit",
            "architectures": ["ViTModel"],
            "dtype": "float32",
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "num_channels": config.in_channels,
            "hidden_size": config.dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": round(config.dim * config.mlp_ratio),
            "hidden_act": "gelu",
            "layer_norm_eps": config.layer_norm_eps,
            "qkv_bias": True,
        }
    return {
        "model_type": "ssl_resnet",
        "architecture": config.backbone,
        "num_classes": 0,
        "model_args": {"in_chans": config.in_channels, "num_classes": 0},
        "pretrained_cfg": {
            "input_size": [config.in_channels, *config.size],
            "interpolation": "bicubic",
            "crop_pct": config.crop_pct,
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        },
        "width": config.width,
        "small_stem": config.small_stem,
    }


def from_theirs(cls: type[C], values: dict[str, Any], preprocessor: dict[str, Any]) -> C:
    """The `cls` of transformers' `vit` or `resnet` folder; the recipe's fields keep their defaults.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    kind = values.get("model_type")
    if kind == "vit":
        return _vit(cls, values, preprocessor)
    if kind != "resnet":
        raise ConfigError(f"model_type is {kind!r}: an encoder of this package is 'vit' or 'resnet'")
    names = {(_BLOCKS[block], depths): name for name, (block, depths) in LAYERS.items()}
    depths = values.get("depths", [3, 4, 6, 3])
    key = (values.get("layer_type", "bottleneck"), tuple(depths) if isinstance(depths, list) else ())
    if key not in names or values.get("downsample_in_bottleneck", False):
        raise ConfigError(f"layer_type {key[0]!r} with depths {depths!r} is not one of {', '.join(LAYERS)}")
    width = positive(values, "embedding_size", 64)
    return from_dict(cls, {"backbone": names[key], "width": width, **pixels(cls, values, preprocessor)})


_BLOCKS = {BasicBlock: "basic", Bottleneck: "bottleneck"}
_VIT_NAMES = {
    "dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "patch_size": "patch_size",
    "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
_VIT_DEFAULTS = {"dim": 768, "depth": 12, "heads": 12, "patch_size": 16, "layer_norm_eps": 1e-12}
"""transformers' ViTConfig, which leaves its defaults out of config.json."""


def _vit(cls: type[C], values: dict[str, Any], preprocessor: dict[str, Any]) -> C:
    for key, expected in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if values.get(key, expected) != expected:
            raise ConfigError(f"{key} = {values[key]!r} is not supported: use transformers for this model")
    known = {ours: values.get(theirs, _VIT_DEFAULTS[ours]) for ours, theirs in _VIT_NAMES.items()}
    ratio = positive(values, "intermediate_size", 3072) / positive(values, "hidden_size", 768)
    return from_dict(cls, {"backbone": "vit", **known, "mlp_ratio": ratio, **pixels(cls, values, preprocessor)})


def pixels(cls: type, values: dict[str, Any], preprocessor: dict[str, Any]) -> dict[str, Any]:
    """image_size, in_channels, mean and std as a transformers folder says them."""
    channels = positive(values, "num_channels", 3)
    size = values.get("image_size", 224)
    fields = {"image_size": tuple(size) if isinstance(size, list) else size, **statistics(cls, channels)}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in preprocessor:
            fields[ours] = preprocessor[theirs]
    return fields


def statistics(cls: type, channels: int) -> dict[str, Any]:
    """`cls`'s mean and std, ImageNet's by default; their means over the colours where there are not three channels."""
    if channels == 3:
        return {"in_channels": 3}
    return {"in_channels": channels} | {
        n: (sum(getattr(cls, n)) / len(getattr(cls, n)),) * channels for n in ("mean", "std")
    }


def positive(values: dict[str, Any], key: str, default: int) -> int:
    """A positive whole number of a config.json, or ConfigError."""
    value = values.get(key, default)
    if type(value) is not int or not 0 < value < 2**20:
        raise ConfigError(f"{key} = {value!r}: expected a positive number")
    return value


def infer(cls: type[C], state: Mapping[str, Tensor], ours: str = "encoder.") -> C:
    """Config of a checkpoint without one, from the shapes of its encoder; a ViT's heads are 64 wide.

    Raises ConfigError when the tensors are no encoder's.
    """
    vit, resnet = (state.get(f"{ours}{name}.weight") for name in ("patch_embed.proj", "conv1"))
    if vit is not None and vit.ndim == 4:
        return _infer_vit(cls, state, ours, vit)
    if resnet is None or resnet.ndim != 4:
        raise ConfigError(f"the checkpoint holds neither a ViT nor a ResNet (no {ours}conv1.weight)")
    depths = tuple(
        1 + max((int(k[len(p) :].split(".")[0]) for k in state if k.startswith(p)), default=-1)
        for p in (f"{ours}layer{s}." for s in range(1, 5))
    )
    block = Bottleneck if f"{ours}layer1.0.conv3.weight" in state else BasicBlock
    for name, known in LAYERS.items():
        if known == (block, depths):
            width, channels, side, _ = resnet.shape
            return from_dict(cls, {
                "backbone": name, "width": width, "small_stem": side == 3, **statistics(cls, channels),
            })  # fmt: skip
    raise ConfigError(f"a ResNet of {depths} blocks is not one of {', '.join(LAYERS)}")


def _infer_vit(cls: type[C], state: Mapping[str, Tensor], ours: str, stem: Tensor) -> C:
    positions, mlp = state.get(f"{ours}pos_embed"), state.get(f"{ours}blocks.0.mlp.fc1.weight")
    if positions is None or mlp is None or positions.ndim != 3 or mlp.ndim != 2:
        raise ConfigError(f"the checkpoint is no ViT: it lacks {ours}pos_embed or {ours}blocks.0.mlp.fc1.weight")
    dim, channels, patch, _ = stem.shape
    try:
        rows, _ = square_grid(positions.shape[1] - 1)
    except ValueError as error:
        raise ConfigError(f"the checkpoint says no image size: {error}") from error
    prefix = f"{ours}blocks."
    return from_dict(cls, {
        "backbone": "vit", "dim": dim, "heads": max(1, dim // 64), "patch_size": patch, "image_size": rows * patch,
        "depth": 1 + max(int(k[len(prefix) :].split(".")[0]) for k in state if k.startswith(prefix)),
        "mlp_ratio": mlp.shape[0] / dim, **statistics(cls, channels),
    })  # fmt: skip


def adapt(state: dict[str, Tensor], stored: BackboneConfig, wanted: BackboneConfig) -> dict[str, Tensor]:
    """`state` for the channels and the image size of `wanted`, in the encoder and in its copies (a target, a teacher).

    Raises WeightsMismatch when `state` is not of `stored`'s sizes, ConfigError for another architecture.
    """
    if stored.backbone != wanted.backbone or (not stored.is_vit and stored.small_stem != wanted.small_stem):
        raise ConfigError(
            f"the checkpoint is a {stored.backbone} (small_stem {stored.small_stem}), "
            f"{wanted.backbone} (small_stem {wanted.small_stem}) is asked for"
        )
    state = dict(state)
    for key in list(state):
        if re.fullmatch(r"(\w+\.)+(patch_embed\.proj|(?<!\d\.)conv1)\.weight", key):
            check_shapes(state, {key: _stem_shape(stored)})
            if stored.in_channels != wanted.in_channels:
                state[key] = adapt_stem(state[key], wanted.in_channels)
        elif key.endswith(".pos_embed") and stored.grid != wanted.grid:
            check_shapes(state, {key: (1, 1 + stored.patches, stored.dim)})
            state[key] = interpolate_positions(state[key], stored.grid, wanted.grid, wanted.pos_interp)
    return state


def _stem_shape(config: BackboneConfig) -> tuple[int, ...]:
    if config.is_vit:
        return config.dim, config.in_channels, config.patch_size, config.patch_size
    side = 3 if config.small_stem else 7
    return config.width, config.in_channels, side, side


def to_transformers(method: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' ViTModel or ResNetModel for `method.encoder`.

    Raises ConfigError for a small stem, which ResNetModel does not have.
    """
    config = method.config
    if config.is_vit:
        return _encoder(method, VIT), to_theirs(config)
    if config.small_stem:
        raise ConfigError(
            "small_stem: transformers' ResNetModel has the ImageNet stem only; model.safetensors of the folder itself "
            "has torchvision's names"
        )
    block, depths = LAYERS[config.backbone]
    return _encoder(method, RESNET_TRANSFORMERS), {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "dtype": "float32",
        "num_channels": config.in_channels,
        "embedding_size": config.width,
        "hidden_sizes": [config.width * block.expansion * 2**s for s in range(4)],
        "depths": list(depths),
        "layer_type": _BLOCKS[block],
        "hidden_act": "relu",
    }


def to_timm(method: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of a timm model with the features of `method.encode`, for `create_model("local-dir:…")`.

    Raises ConfigError for what timm's networks do not have: another epsilon, width or stem.
    """
    config = method.config
    if not config.is_vit:
        if config.small_stem or config.width != 64:
            raise ConfigError("timm's ResNets are 64 channels wide and have the ImageNet stem: this one has not")
        theirs = to_theirs(config)
        kept = ("architecture", "num_classes", "model_args", "pretrained_cfg")
        return _encoder(method, RESNET), {key: theirs[key] for key in kept}
    return _encoder(method, VIT_TIMM), timm_vit(config)


def timm_vit(config: Any, *, architecture: str = "vit_base_patch16_224", **arguments: Any) -> dict[str, Any]:
    """timm's config.json for a ViT whose config names its sizes as `BackboneConfig` does; `arguments` are the network's.

    Raises ConfigError for an epsilon other than timm's.
    """
    if config.layer_norm_eps != 1e-6:
        raise ConfigError(f"layer_norm_eps = {config.layer_norm_eps}: timm has 1e-6, export to transformers instead")
    pool = "token" if config.pool == "cls" else "avg"
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": config.dim,
        "global_pool": pool,
        "model_args": {
            "img_size": list(config.size),
            "patch_size": config.patch_size,
            "in_chans": config.in_channels,
            "embed_dim": config.dim,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
            "num_classes": 0,
            "global_pool": pool,
            "fc_norm": False,  # timm would move the last norm behind the mean
            **arguments,
        },
        "pretrained_cfg": {
            "input_size": [config.in_channels, *config.size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": config.crop_pct,
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _encoder(method: Any, rows: tuple[Row, ...]) -> dict[str, Tensor]:
    return KeyMap(rows=rows).to_theirs(method.encoder.state_dict())[0]


EXPORTS = {"transformers": to_transformers, "timm": to_timm}
"""What `export --to` writes beside our own layout, for a method whose config is a `BackboneConfig`."""
