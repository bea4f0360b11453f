"""DINOv2's weights elsewhere: transformers' `dinov2` and `dinov2_with_registers`, timm's
`.lvd142m`, the authors'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_core.config import ConfigError, from_dict
from ssl_core.hub import encoders
from ssl_core.hub.config_json import pixels, positive, read, written
from ssl_core.hub.encoders import BLOCK, CLASSIFIERS, EMBEDDINGS, VIT_FIXED, VIT_NAMES, VIT_TIMM, timm_vit, vit_sizes
from ssl_core.hub.keymap import KeyMap, Row, prefixed, same
from ssl_core.hub.layout import Layout
from ssl_core.hub.resize import positions, stem
from ssl_dino.config import DINOv2Config

SCALES: tuple[Row, ...] = (("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"))
NORMS_MLP = same(*(f"{name}.{{w}}" for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")))

ON_DISK: tuple[Row, ...] = (
    *NORMS_MLP,
    *SCALES,
    *(row for row in BLOCK if row[0].startswith("attn.")),
    ("mlp.w12.{w}", "mlp.weights_in.{w}"),
    ("mlp.w3.{w}", "mlp.weights_out.{w}"),
)
"""A block of transformers' Dinov2Model in every file."""

IN_MEMORY: tuple[Row, ...] = (
    ("attn.qkv.{w}", tuple(f"attention.{n}_proj.{{w}}" for n in "qkv")),
    ("attn.proj.{w}", "attention.o_proj.{w}"),
    ("mlp.w12.{w}", ("mlp.gate_proj.{w}", "mlp.up_proj.{w}")),
    ("mlp.w3.{w}", "mlp.down_proj.{w}"),
)
"""What transformers 5 names otherwise in memory."""

AUTHORS = same(*(name for name, _ in BLOCK), "ls1.gamma", "ls2.gamma", "mlp.w12.{w}", "mlp.w3.{w}")

TRANSFORMERS: tuple[Row, ...] = (
    *prefixed(EMBEDDINGS, ours="encoder."),
    ("encoder.register_tokens", "embeddings.register_tokens"),
    ("mask_token", "embeddings.mask_token"),
    *prefixed(ON_DISK, ours="encoder.blocks.{i}.", theirs="encoder.layer.{i}."),
)

KEYMAP = KeyMap(
    rows=TRANSFORMERS,
    also=(
        *(row for name in ("dinov2.", "dinov2_with_registers.") for row in prefixed(TRANSFORMERS, theirs=name)),
        *prefixed(IN_MEMORY, ours="encoder.blocks.{i}.", theirs="encoder.layer.{i}."),
        *prefixed(VIT_TIMM, ours="encoder."),
        *prefixed(AUTHORS[len(BLOCK) :], ours="encoder.blocks.{i}.", theirs="blocks.{i}."),
        ("encoder.register_tokens", "register_tokens"),
        ("encoder.register_tokens", "reg_token"),
        ("mask_token", "mask_token"),
        # the authors' training checkpoints keep blocks in four chunks
        *(row for c in range(4) for row in prefixed(AUTHORS, ours="encoder.blocks.{i}.", theirs=f"blocks.{c}.{{i}}.")),
    ),
    drop=CLASSIFIERS,
)

NAMES = {**VIT_NAMES, "mlp_ratio": "mlp_ratio", "swiglu": "use_swiglu_ffn"}
"""Our config fields and transformers' names for the same value."""
DEFAULTS = {"dim": 768, "depth": 12, "heads": 12}
"""Where transformers' defaults for absent keys are not ours."""


def to_theirs(config: DINOv2Config) -> dict[str, Any]:
    """config.json of transformers' Dinov2Model, or with registers of Dinov2WithRegistersModel."""
    kind = ("dinov2_with_registers", "Dinov2WithRegistersModel") if config.registers else ("dinov2", "Dinov2Model")
    more = {"image_size": config.image_size, "num_channels": config.in_channels, "layerscale_value": 1.0, **VIT_FIXED}
    if config.registers:
        more["num_register_tokens"] = config.registers
    return written(*kind, config, NAMES, **more)


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> DINOv2Config:
    """Our config of a transformers folder, whose positions are resampled as transformers does it.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    known = read(values, "dinov2", "dinov2_with_registers", names=NAMES, fixed=VIT_FIXED, by="DINOv2")
    registers = values["model_type"] == "dinov2_with_registers"
    known |= {
        "registers": values.get("num_register_tokens", 4) if registers else 0,
        "pos_interp": "antialias" if registers else "size",
    }
    seen = {**pixels(DINOv2Config, values, preprocessor), **_crop(preprocessor)}
    return from_dict(DINOv2Config, {**DEFAULTS, **known, **seen})


def _crop(preprocessor: dict[str, Any]) -> dict[str, float]:
    """The share of the shorter side that the folder's evaluation crops."""
    resized, cropped = preprocessor.get("size"), preprocessor.get("crop_size")
    if not isinstance(resized, dict) or not isinstance(cropped, dict) or not preprocessor.get("do_center_crop", True):
        return {}
    sides = {"side": resized.get("shortest_edge"), "crop": cropped.get("height")}
    if not all(type(side) is int for side in sides.values()):
        return {}
    return {"crop_pct": min(1.0, positive(sides, "crop", 1) / positive(sides, "side", 1))}


def infer(state: Mapping[str, Tensor]) -> DINOv2Config:
    """Config of an author's or timm's checkpoint, from shapes; heads are taken to be 64 wide.

    Raises ConfigError when the tensors are not a DINOv2's.
    """
    state = plain(state)
    sizes = vit_sizes(DINOv2Config, state, what="DINOv2")
    if (scale := state.get("encoder.blocks.0.ls1.gamma")) is None or scale.ndim != 1:
        raise ConfigError("the checkpoint is not a DINOv2: it holds no encoder.blocks.0.ls1.gamma of 1 dimensions")
    registers = state.get("encoder.register_tokens")
    hidden = state.get("encoder.blocks.0.mlp.fc1.weight")
    sizes |= {
        "swiglu": hidden is None,
        "mlp_ratio": 4 if hidden is None else hidden.shape[0] // sizes["dim"],
        "registers": 0 if registers is None else registers.shape[1],
        "pos_interp": "offset" if registers is None else "antialias",
    }
    return from_dict(DINOv2Config, sizes)


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state in our form. Other states stay as they are."""
    state = dict(state)

    # timm names a SwiGLU fc1 and fc2. Its first layer is twice as wide as its second one expects.
    for key in [key for key in state if key.endswith(".mlp.fc1.weight")]:
        block = key.removesuffix("fc1.weight")
        first, second = state[key], state.get(block + "fc2.weight")
        if second is not None and second.ndim == 2 and first.shape[0] == 2 * second.shape[1]:
            for old, new in (("fc1", "w12"), ("fc2", "w3")):
                state |= {f"{block}{new}.{w}": state.pop(f"{block}{old}.{w}") for w in ("weight", "bias")}

    # With registers, timm has no position for CLS: its CLS token holds it already.
    positions = state.get("encoder.pos_embed")
    if positions is not None and positions.ndim == 3 and "encoder.register_tokens" in state:
        side = round(positions.shape[1] ** 0.5)
        if side * side == positions.shape[1]:
            state["encoder.pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    return state


def tidy(state: dict[str, Tensor], stored: DINOv2Config) -> dict[str, Tensor]:
    """`plain` state, with a mask token of zeros where a file has none."""
    state = plain(state)
    if "encoder.patch_embed.proj.weight" in state:
        state.setdefault("mask_token", torch.zeros(1, stored.dim))
    return state


def unwrap(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The teacher's backbone of the authors' training checkpoint, without its heads.

    It holds {"teacher": {"backbone.…", "dino_head.…"}}.
    """
    teacher = raw.get("teacher")
    if not isinstance(teacher, Mapping):
        return raw
    return {key.removeprefix("backbone."): value for key, value in teacher.items() if key.startswith("backbone.")}


def to_transformers(state: dict[str, Tensor], config: DINOv2Config) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' Dinov2Model or Dinov2WithRegistersModel."""
    return KEYMAP.to_theirs(state)[0], to_theirs(config)


def to_timm(state: dict[str, Tensor], config: DINOv2Config) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of a timm model with the features of `encode`.

    timm opens them by `create_model("local-dir:…")`. Raises
    ConfigError for an epsilon other than timm's.
    """
    state = {key.removeprefix("encoder."): tensor for key, tensor in state.items() if key.startswith("encoder.")}
    arguments: dict[str, Any] = {"init_values": 1e-5}
    if config.registers:
        # With registers, timm has no position for CLS: the CLS token takes its own in.
        pos = state.pop("pos_embed")
        state |= {"cls_token": state["cls_token"] + pos[:, :1], "pos_embed": pos[:, 1:]}
        state["reg_token"] = state.pop("register_tokens")
        arguments |= {"reg_tokens": config.registers, "no_embed_class": True}
    architecture = "vit_base_patch14_dinov2"
    if config.swiglu:
        for key in [key for key in state if ".mlp.w" in key]:
            state[key.replace("w12", "fc1").replace("w3", "fc2")] = state.pop(key)
        architecture = "vit_giant_patch14_dinov2"
        # Half a unit is added because timm rounds the hidden width down.
        arguments["mlp_ratio"] = (state["blocks.0.mlp.fc1.weight"].shape[0] + 0.5) / config.dim
    values = timm_vit(config, architecture=architecture, **arguments)
    return {key: value.contiguous() for key, value in state.items()}, values


LAYOUT = Layout(
    keymap=KEYMAP,
    to_theirs=to_theirs,
    from_theirs=from_theirs,
    infer=infer,
    tidy=tidy,
    unwrap=unwrap,
    resize=((r"encoder\.patch_embed\.proj\.weight", stem), (r"encoder\.pos_embed", positions)),
    others=dict.fromkeys(("dinov2", "dinov2_with_registers"), encoders.OTHERS["vit"]),
    exports={"transformers": to_transformers, "timm": to_timm},
)
