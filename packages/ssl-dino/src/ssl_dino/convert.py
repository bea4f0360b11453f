"""DINO's weights elsewhere: transformers' `vit` and `resnet`, timm's `.dino`, the authors'
backbones and whole training checkpoints.

DINOv2's weights are in `convert_dinov2.py`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_core.config import ConfigError
from ssl_core.hub import encoders
from ssl_core.hub.encoders import RESNET, VIT_TIMM, encoder_layout
from ssl_core.hub.keymap import Row, prefixed, same
from ssl_dino.config import DINOConfig
from ssl_dino.convert_dinov2 import LAYOUT as DINOV2

BACKBONE, HEAD = "teacher.backbone.", "teacher.head."
HEADS, COPIES = (HEAD, "center"), {"student.": "teacher."}

HEAD_ROWS = same("mlp.{i}.{b}", "last_layer.weight_g", "last_layer.weight_v")
RENAMED: tuple[Row, ...] = (
    ("last_layer.weight_g", "last_layer.parametrizations.weight.original0"),
    ("last_layer.weight_v", "last_layer.parametrizations.weight.original1"),
)
"""The last layer under torch's newer weight norm."""

NETWORK: tuple[Row, ...] = (
    *prefixed((*VIT_TIMM, *RESNET), ours="backbone.", theirs="backbone."),
    *prefixed((*HEAD_ROWS, *RENAMED), ours="head.", theirs="head."),
)
CHECKPOINT: tuple[Row, ...] = (
    *(
        row
        for name in ("student.", "teacher.")
        for ddp in ("", "module.")
        for row in prefixed(NETWORK, ours=name, theirs=name + ddp)
    ),
    ("center", "dino_loss.center"),
)
"""The authors' training checkpoint, its networks with and without DDP's `module.`."""


def unwrap(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors of the authors' training checkpoint in one dict.

    It holds "student", "teacher", "dino_loss", the optimiser and more, or the teacher alone.
    """
    if not isinstance(raw.get("teacher"), Mapping):
        return raw
    parts = {name: raw[name] for name in ("student", "teacher", "dino_loss") if isinstance(raw.get(name), Mapping)}
    return {f"{name}.{key}": tensor for name, state in parts.items() for key, tensor in state.items()}


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> DINOConfig:
    """Our config of a transformers folder, which resamples positions as transformers does."""
    config = encoders.from_theirs(DINOConfig, values, preprocessor)
    return dataclasses.replace(config, pos_interp="size")


def infer(state: Mapping[str, Tensor]) -> DINOConfig:
    """Config of an authors' checkpoint, from the shapes of its backbone and of its head, if any."""
    config = encoders.infer(DINOConfig, state, BACKBONE)
    names = ("mlp.0.weight", "last_layer.weight_v", "last_layer.weight_g")
    first, last, length = (state.get(HEAD + name) for name in names)
    if first is None or last is None or length is None:
        return config
    if first.ndim != 2 or last.ndim != 2:
        shapes = f"{tuple(first.shape)} and {tuple(last.shape)}"
        raise ConfigError(f"the checkpoint is no DINO: the first and last layer of its head are {shapes}")
    return dataclasses.replace(
        config,
        prototypes=last.shape[0],
        bottleneck=last.shape[1],
        head_hidden=first.shape[0],
        # Only Linears have matrices. A batch norm follows each of them but the last.
        head_layers=sum(key.startswith(HEAD + "mlp.") and state[key].ndim == 2 for key in state),
        head_bn=f"{HEAD}mlp.1.weight" in state,
        norm_last_layer=bool((length == 1).all()),
    )


def tidy(state: dict[str, Tensor], stored: DINOConfig) -> dict[str, Tensor]:
    """`state` with what a file may lack.

    A backbone alone is marked, so that training begins with its heads. A teacher alone becomes the
    student too, with a centre of zero and a warning.
    """
    alone = state and not any(key.startswith((*HEADS, *COPIES)) for key in state)
    if HEAD + "last_layer.weight_v" in state and not any(key.startswith("student.") for key in state):
        warnings.warn("a teacher without a student: the student starts as its copy", stacklevel=4)
        copied = {"student." + key.removeprefix("teacher."): state[key] for key in state if key.startswith("teacher.")}
        state = {"center": torch.zeros(1, stored.prototypes), **copied, **state}
    return {"new_heads": torch.tensor(bool(alone)), **state}


LAYOUTS = {
    "dino": encoder_layout(
        DINOConfig,
        BACKBONE,
        also=CHECKPOINT,
        from_theirs=from_theirs,
        infer=infer,
        tidy=tidy,
        unwrap=unwrap,
        heads=HEADS,
        head_fields=("prototypes", "head_hidden", "bottleneck", "head_layers", "head_bn", "norm_last_layer"),
        copies=COPIES,
    ),
    "dinov2": DINOV2,
}
