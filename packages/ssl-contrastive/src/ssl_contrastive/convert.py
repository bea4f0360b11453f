"""Weights elsewhere: transformers, timm, torchvision, solo-learn, MoCo's and SimSiam's authors.

`model.safetensors` holds the encoder as transformers' ViT or torchvision's ResNet. Heads, target
and queue are in `heads.safetensors`. SimCLR's and BYOL's authors published no PyTorch weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from ssl_contrastive.config import BYOLConfig, ContrastiveConfig, MoCoConfig, SimCLRConfig, SimSiamConfig
from ssl_core.config import from_dict, to_dict
from ssl_core.hub import encoders
from ssl_core.hub.encoders import RESNET, VIT_TIMM, encoder_layout
from ssl_core.hub.keymap import KeyMap, Row, prefixed
from ssl_core.hub.layout import Layout

C = TypeVar("C", bound=ContrastiveConfig)

MOCO_AUTHORS: tuple[Row, ...] = (
    *prefixed(RESNET, ours="encoder.", theirs="module.encoder_q."),
    *prefixed(RESNET, ours="key_encoder.", theirs="module.encoder_k."),
    # v2's projector is a Sequential named fc, v1's is the Linear fc itself.
    ("projector.{i}.{w}", "module.encoder_q.fc.{i}.{w}"),
    ("key_projector.{i}.{w}", "module.encoder_k.fc.{i}.{w}"),
    ("projector.0.{w}", "module.encoder_q.fc.{w}"),
    ("key_projector.0.{w}", "module.encoder_k.fc.{w}"),
    ("queue", "module.queue"),
    ("queue_ptr", "module.queue_ptr"),
)
"""facebookresearch/moco, v1 and v2."""


class MoCoKeyMap(KeyMap):
    """A `KeyMap` that turns the authors' queue (d, k) into ours (k, d). In our own folders the
    queue is in heads.safetensors, which needs no map."""

    def to_ours(self, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        state, unknown = super().to_ours(theirs)
        if "queue" in state:
            state["queue"] = state["queue"].T.contiguous()
        return state, unknown


SIMSIAM_AUTHORS: tuple[Row, ...] = (
    *prefixed(RESNET, ours="encoder.", theirs="module.encoder."),
    ("projector.{i}.{b}", "module.encoder.fc.{i}.{b}"),
    ("predictor.{i}.{b}", "module.predictor.{i}.{b}"),
)
"""facebookresearch/simsiam."""

SOLO: tuple[Row, ...] = prefixed((*RESNET, *VIT_TIMM), ours="encoder.", theirs="backbone.")
"""solo-learn's encoder."""


def infer(cls: type[C], state: Mapping[str, Tensor]) -> C:
    """The config of a checkpoint that has none, from the shapes of its encoder, heads and queue."""
    fields = to_dict(encoders.infer(cls, state))

    # Batch norm has weights too, but of one dimension. An encoder alone has no projector.
    names = [key for key in state if re.fullmatch(r"projector\.\d+\.weight", key) and state[key].ndim == 2]
    if names:
        last = max(names, key=lambda name: int(name.split(".")[1]))
        fields |= {"head_layers": len(names), "projection": len(state[last])}
        if "queue" in state:
            fields["queue"] = len(state["queue"])
        if "predictor.0.weight" in state:
            fields["predictor_hidden"] = len(state["predictor.0.weight"])
    return from_dict(cls, fields)


def without_frozen_bias(state: dict[str, Tensor], stored: SimSiamConfig) -> dict[str, Tensor]:
    """`state` without the frozen bias that the authors have before the projector's last batch norm.

    Batch norm subtracts the mean and with it the bias, so the running mean can absorb the bias.
    """
    bias, mean = (state.get(f"projector.{name}") for name in ("6.bias", "7.running_mean"))
    if bias is not None and mean is not None and bias.shape == mean.shape:
        state["projector.7.running_mean"] = mean - state.pop("projector.6.bias")
    return state


def layout(cls: type[ContrastiveConfig], *authors: Row, **fields: Any) -> Layout:
    """A method's layout: the rows of its authors' files, and other `fields` of `Layout`."""
    return encoder_layout(cls, also=(*authors, *SOLO), infer=partial(infer, cls), **fields)


_MOCO = layout(
    MoCoConfig,
    *MOCO_AUTHORS,
    heads=("projector.", "queue"),
    head_fields=("head_layers", "projection", "queue"),
    copies={"key_encoder.": "encoder.", "key_projector.": "projector."},
)
LAYOUTS: dict[str, Layout] = {
    "simclr": layout(SimCLRConfig, heads=("projector.",), head_fields=("head_layers", "projection")),
    "moco": dataclasses.replace(_MOCO, keymap=MoCoKeyMap(**vars(_MOCO.keymap))),
    "byol": layout(
        BYOLConfig,
        heads=("projector.", "predictor."),
        head_fields=("hidden", "projection"),
        copies={"target_encoder.": "encoder.", "target_projector.": "projector."},
    ),
    "simsiam": layout(
        SimSiamConfig,
        *SIMSIAM_AUTHORS,
        tidy=without_frozen_bias,
        heads=("projector.", "predictor."),
        head_fields=("head_layers", "projection", "predictor_hidden"),
    ),
}
