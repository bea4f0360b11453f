"""Weights of the encoders that several packages share: transformers' `vit` and `resnet`, timm,
torchvision, authors.

A ViT is written as transformers' ViTModel. A ResNet is written under torchvision's names, with a
config.json that timm reads. transformers' ResNetModel has no small-image stem, so its layout is an
export.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from ssl_core.config import BackboneConfig, ConfigError, from_dict
from ssl_core.hub.config_json import pixels, positive, read, statistics, written
from ssl_core.hub.keymap import KeyMap, Row, prefixed, same
from ssl_core.hub.layout import Layout, State
from ssl_core.hub.resize import positions, stem
from ssl_core.patches import square_grid
from ssl_core.resnet import LAYERS, BasicBlock, Bottleneck

C = TypeVar("C", bound=BackboneConfig)
Exported = tuple[dict[str, Tensor], dict[str, Any]]

# ------------------------------------------------------------------ names

EMBEDDINGS: tuple[Row, ...] = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.{w}", "embeddings.patch_embeddings.projection.{w}"),
    ("norm.{w}", "layernorm.{w}"),
)
"""Around the blocks of transformers' ViT."""

BLOCK: tuple[Row, ...] = (
    ("norm1.{w}", "layernorm_before.{w}"),
    ("norm2.{w}", "layernorm_after.{w}"),
    ("attn.qkv.{w}", tuple(f"attention.attention.{n}.{{w}}" for n in ("query", "key", "value"))),
    ("attn.proj.{w}", "attention.output.dense.{w}"),
    ("mlp.fc1.{w}", "intermediate.dense.{w}"),
    ("mlp.fc2.{w}", "output.dense.{w}"),
)
"""A block as transformers 4 names it, which is what every file on disk holds."""

BLOCK_IN_MEMORY: tuple[Row, ...] = (
    *BLOCK[:2],
    ("attn.qkv.{w}", tuple(f"attention.{n}_proj.{{w}}" for n in "qkv")),
    ("attn.proj.{w}", "attention.o_proj.{w}"),
    *same("mlp.fc1.{w}", "mlp.fc2.{w}"),
)
"""The same block as transformers 5 names it in memory."""

VIT: tuple[Row, ...] = (*EMBEDDINGS, *prefixed(BLOCK, ours="blocks.{i}.", theirs="encoder.layer.{i}."))
"""transformers' ViTModel on disk."""
VIT_IN_MEMORY: tuple[Row, ...] = prefixed(BLOCK_IN_MEMORY, ours="blocks.{i}.", theirs="layers.{i}.")
VIT_TIMM: tuple[Row, ...] = same(*(name for name, _ in VIT))
"""timm's and the authors' ViT, whose names are ours."""

_STAGES = range(1, 5)
RESNET: tuple[Row, ...] = same(
    "conv1.weight",
    "bn1.{b}",
    *(f"layer{s}.{{i}}.{name}" for s in _STAGES for j in (1, 2, 3) for name in (f"conv{j}.weight", f"bn{j}.{{b}}")),
    *(f"layer{s}.{{i}}.downsample.{name}" for s in _STAGES for name in ("0.weight", "1.{b}")),
)
"""torchvision's ResNet without its classifier; timm's and the authors' too."""


def _resnet_stage(s: int) -> tuple[Row, ...]:
    convolutions = [(f"conv{j}.weight", f"bn{j}.{{b}}", f"layer.{j - 1}") for j in (1, 2, 3)]
    convolutions.append(("downsample.0.weight", "downsample.1.{b}", "shortcut"))
    rows = [
        row
        for convolution, norm, place in convolutions
        for row in ((convolution, f"{place}.convolution.weight"), (norm, f"{place}.normalization.{{b}}"))
    ]
    return prefixed(rows, ours=f"layer{s}.{{i}}.", theirs=f"encoder.stages.{s - 1}.layers.{{i}}.")


RESNET_TRANSFORMERS: tuple[Row, ...] = (
    ("conv1.weight", "embedder.embedder.convolution.weight"),
    ("bn1.{b}", "embedder.embedder.normalization.{b}"),
    *(row for s in _STAGES for row in _resnet_stage(s)),
)
"""transformers' ResNetModel."""

CLASSIFIERS = (r"(fc|head|classifier(\.1)?)\.(weight|bias)", r"pooler\.dense\.(weight|bias)")
"""What a supervised checkpoint has behind its encoder, and an encoder of ours has not."""


def vit_rows(ours: str = "encoder.") -> tuple[Row, ...]:
    """Every spelling of a ViT that is read, beside `VIT` itself, for an encoder that is named
    `ours`."""
    spellings = (*VIT_IN_MEMORY, *VIT_TIMM, *prefixed((*VIT, *VIT_IN_MEMORY), theirs="vit."))
    return prefixed(spellings, ours=ours)


def encoder_keymap(ours: str = "encoder.", *, also: tuple[Row, ...] = ()) -> KeyMap:
    """The map of a method whose published encoder is named `ours`; `also` are the spellings of its
    authors' files."""
    resnets = (*RESNET_TRANSFORMERS, *prefixed(RESNET_TRANSFORMERS, theirs="resnet."))
    return KeyMap(
        rows=prefixed((*VIT, *RESNET), ours=ours),
        also=(*vit_rows(ours), *prefixed(resnets, ours=ours), *also),
        drop=CLASSIFIERS,
    )


# ------------------------------------------------------------------ config.json

VIT_NAMES = {"dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
VIT_NAMES |= {"patch_size": "patch_size", "layer_norm_eps": "layer_norm_eps"}
"""Our fields of a ViT and transformers' names for the same value."""
VIT_FIXED = {"hidden_act": "gelu", "qkv_bias": True}
"""transformers' options of a ViT of which we have one value."""
VIT_DEFAULTS = {"dim": 768, "depth": 12, "heads": 12, "patch_size": 16, "layer_norm_eps": 1e-12}
"""transformers' defaults, which it leaves out of config.json."""
_BLOCKS = {BasicBlock: "basic", Bottleneck: "bottleneck"}


def vit_to_theirs(model_type: str, architecture: str, config: Any, **more: Any) -> dict[str, Any]:
    """config.json of a transformers model that names a ViT's sizes as its `vit` does."""
    names = {**VIT_NAMES, "image_size": "image_size", "in_channels": "num_channels"}
    hidden = round(config.dim * config.mlp_ratio)
    return written(model_type, architecture, config, names, intermediate_size=hidden, **VIT_FIXED, **more)


def to_theirs(config: BackboneConfig) -> dict[str, Any]:
    """config.json: transformers' for a ViT; for a ResNet what timm's `create_model("local-dir:…")`
    reads."""
    if config.is_vit:
        return vit_to_theirs("vit", "ViTModel", config)
    timm = {
        "architecture": config.backbone,
        "num_classes": 0,
        "model_args": {"in_chans": config.in_channels},
        "pretrained_cfg": timm_pixels(config, first_conv="conv1", classifier="fc"),
    }
    kind = "timm_wrapper" if config.width == 64 and not config.small_stem else "ssl_resnet"
    return {"model_type": kind, **timm, "width": config.width, "small_stem": config.small_stem}


def from_theirs(cls: type[C], values: dict[str, Any], preprocessor: dict[str, Any]) -> C:
    """The `cls` of transformers' `vit` or `resnet` folder; the recipe's fields keep their defaults.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    seen = pixels(cls, values, preprocessor)
    if values.get("model_type") != "resnet":
        known = read(values, "vit", "resnet", names=VIT_NAMES, fixed=VIT_FIXED, by="this package")
        ratio = positive(values, "intermediate_size", 3072) / positive(values, "hidden_size", 768)
        return from_dict(cls, {"backbone": "vit", **VIT_DEFAULTS, **known, "mlp_ratio": ratio, **seen})
    names = {(_BLOCKS[block], depths): name for name, (block, depths) in LAYERS.items()}
    depths = values.get("depths", [3, 4, 6, 3])
    key = (values.get("layer_type", "bottleneck"), tuple(depths) if isinstance(depths, list) else ())
    if key not in names or values.get("downsample_in_bottleneck", False):
        raise ConfigError(f"layer_type {key[0]!r} with depths {depths!r} is not one of {', '.join(LAYERS)}")
    return from_dict(cls, {"backbone": names[key], "width": positive(values, "embedding_size", 64), **seen})


# ------------------------------------------------------------------ shapes


def vit_sizes(cls: type, state: Mapping[str, Tensor], ours: str = "encoder.", *, what: str = "ViT") -> dict[str, Any]:
    """Fields of a ViT that the shapes of its tensors say; its heads are taken to be 64 wide.

    Raises ConfigError when the tensors are not those of a ViT (`what`, in the message).
    """
    needed = {"patch_embed.proj.weight": 4, "pos_embed": 3}
    for key, ndim in needed.items():
        if (tensor := state.get(ours + key)) is None or tensor.ndim != ndim:
            raise ConfigError(f"the checkpoint is not a {what}: it holds no {ours}{key} of {ndim} dimensions")
    dim, channels, patch, _ = state[f"{ours}patch_embed.proj.weight"].shape
    try:
        rows, _ = square_grid(state[f"{ours}pos_embed"].shape[1] - 1)
    except ValueError as error:
        raise ConfigError(f"the checkpoint says no image size: {error}") from error
    sizes = {"dim": dim, "heads": max(1, dim // 64), "patch_size": patch, "image_size": rows * patch}
    return {**sizes, "depth": depth_of(state, f"{ours}blocks."), **statistics(cls, channels)}


def mlp_ratio(state: Mapping[str, Tensor], ours: str = "encoder.", *, what: str = "ViT") -> float:
    """Hidden width over width of a ViT's first MLP. Raises ConfigError when it has none."""
    hidden = state.get(f"{ours}blocks.0.mlp.fc1.weight")
    if hidden is None or hidden.ndim != 2:
        raise ConfigError(f"the checkpoint is not a {what}: it holds no {ours}blocks.0.mlp.fc1.weight of 2 dimensions")
    return hidden.shape[0] / hidden.shape[1]


def depth_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks there are whose names begin with `prefix` and a number."""
    return 1 + max((int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)), default=-1)


def infer(cls: type[C], state: Mapping[str, Tensor], ours: str = "encoder.") -> C:
    """Config of a checkpoint without one, from the shapes of its encoder; a ViT's heads are taken
    to be 64 wide.

    Raises ConfigError when the tensors are no encoder's.
    """
    if (patches := state.get(f"{ours}patch_embed.proj.weight")) is not None and patches.ndim == 4:
        sizes = vit_sizes(cls, state, ours)
        return from_dict(cls, {"backbone": "vit", "mlp_ratio": mlp_ratio(state, ours), **sizes})
    first = state.get(f"{ours}conv1.weight")
    if first is None or first.ndim != 4:
        raise ConfigError(f"the checkpoint holds neither a ViT nor a ResNet (no {ours}conv1.weight)")
    depths = tuple(depth_of(state, f"{ours}layer{s}.") for s in _STAGES)
    block = Bottleneck if f"{ours}layer1.0.conv3.weight" in state else BasicBlock
    name = next((name for name, known in LAYERS.items() if known == (block, depths)), None)
    if name is None:
        raise ConfigError(f"a ResNet of {depths} blocks is not one of {', '.join(LAYERS)}")
    width, channels, side, _ = first.shape
    stem = {"width": width, "small_stem": side == 3}
    return from_dict(cls, {"backbone": name, **stem, **statistics(cls, channels)})


# ------------------------------------------------------------------ exports


def encoder_state(state: Mapping[str, Tensor], rows: tuple[Row, ...], ours: str = "encoder.") -> dict[str, Tensor]:
    """The tensors of `state` that are named `ours`…, under the names of `rows`."""
    encoder = {key.removeprefix(ours): tensor for key, tensor in state.items() if key.startswith(ours)}
    return KeyMap(rows=rows).to_theirs(encoder)[0]


def to_transformers(state: State, config: BackboneConfig, ours: str = "encoder.") -> Exported:
    """(tensors, config.json) of transformers' ViTModel or ResNetModel for the encoder.

    Raises ConfigError for a small stem, which ResNetModel does not have.
    """
    if config.is_vit:
        return encoder_state(state, VIT, ours), to_theirs(config)
    if config.small_stem:
        own = "model.safetensors of the folder itself has torchvision's names"
        raise ConfigError(f"small_stem: transformers' ResNetModel has the ImageNet stem only; {own}")
    block, depths = LAYERS[config.backbone]
    names = {"in_channels": "num_channels", "width": "embedding_size"}
    hidden = [config.width * block.expansion * 2**s for s in range(4)]
    sizes = {"hidden_sizes": hidden, "depths": list(depths), "layer_type": _BLOCKS[block], "hidden_act": "relu"}
    return encoder_state(state, RESNET_TRANSFORMERS, ours), written("resnet", "ResNetModel", config, names, **sizes)


def to_timm(state: State, config: BackboneConfig, ours: str = "encoder.") -> Exported:
    """(tensors, config.json) of a timm model with the features of `encode`, for
    `create_model("local-dir:…")`.

    Raises ConfigError for what timm's networks do not have: another epsilon, width or stem.
    """
    if config.is_vit:
        return encoder_state(state, VIT_TIMM, ours), timm_vit(config)
    if config.small_stem or config.width != 64:
        raise ConfigError("timm's ResNets are 64 channels wide and have the ImageNet stem: this one has not")
    kept = ("architecture", "num_classes", "model_args", "pretrained_cfg")
    return encoder_state(state, RESNET, ours), {key: to_theirs(config)[key] for key in kept}


def timm_vit(config: Any, *, architecture: str = "vit_base_patch16_224", **arguments: Any) -> dict[str, Any]:
    """timm's config.json for a ViT with the fields of a `ViTConfig`; `arguments` are the network's.

    Raises ConfigError for an epsilon other than timm's.
    """
    if config.layer_norm_eps != 1e-6:
        raise ConfigError(f"layer_norm_eps = {config.layer_norm_eps}: timm has 1e-6, export to transformers instead")
    sizes = {"patch_size": config.patch_size, "depth": config.depth, "mlp_ratio": config.mlp_ratio}
    sizes |= {"in_chans": config.in_channels, "embed_dim": config.dim, "num_heads": config.heads}
    # fc_norm: timm would move the last norm behind the mean
    ends = {"num_classes": 0, "global_pool": "token" if config.pool == "cls" else "avg"}
    network = {"img_size": list(config.size), **sizes, **ends, "fc_norm": False, **arguments}
    seen = timm_pixels(config, fixed_input_size=True, first_conv="patch_embed.proj", classifier="head")
    own = {"architecture": architecture, "num_features": config.dim, **ends}
    return {**own, "model_args": network, "pretrained_cfg": seen}


def timm_pixels(config: Any, **more: Any) -> dict[str, Any]:
    """timm's `pretrained_cfg`: how its evaluation makes an image."""
    crop = {"input_size": [config.in_channels, *config.size], "interpolation": "bicubic", "crop_pct": config.crop_pct}
    return {**crop, "mean": list(config.mean), "std": list(config.std), "num_classes": 0, **more}


ENCODER_SIZES = (
    (r"(\w+\.)+patch_embed\.proj\.weight", stem),
    (r"(\w+\.)*[a-z_]+\.conv1\.weight", stem),
    (r"(\w+\.)+pos_embed", positions),
)
"""What another number of channels or another image size changes, in an encoder and in its copies (a
target, a teacher)."""
EXTRACTION = "image-feature-extraction"
PIPED = f'pipeline("{EXTRACTION}", model="{{name}}")(picture, return_tensors=True){{pooled}}'
OTHERS = {
    "vit": ("transformers", EXTRACTION, f"transformers has the same features: `{PIPED}`."),
    "timm_wrapper": (
        "timm",
        EXTRACTION,
        'timm too: `timm.create_model("hf-hub:{name}", pretrained=True).eval()(pixels)`.',
    ),
}
"""`Layout.others` of a ViT, and of a ResNet as timm has it."""


def encoder_layout(
    cls: type[BackboneConfig], ours: str = "encoder.", *, also: tuple[Row, ...] = (), **more: Any
) -> Layout:
    """The layout of a method with the config `cls`, whose published encoder is named `ours`.

    `also` are the spellings of its authors' files; `more` are fields of the `Layout`, such as its
    heads.
    """
    exports = {"transformers": partial(to_transformers, ours=ours), "timm": partial(to_timm, ours=ours)}
    own = {"to_theirs": to_theirs, "from_theirs": partial(from_theirs, cls), "infer": partial(infer, cls, ours=ours)}
    own |= {"resize": ENCODER_SIZES, "others": OTHERS, "exports": exports, **more}
    return Layout(keymap=encoder_keymap(ours, also=also), kind=_kind, **own)


def _kind(config: BackboneConfig) -> str:
    return "ViT" if config.is_vit else f"{config.backbone} (small_stem {config.small_stem})"
