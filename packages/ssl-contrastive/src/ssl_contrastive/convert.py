"""The encoders elsewhere: transformers, timm, torchvision, and the authors' checkpoints of MoCo and SimSiam.

`model.safetensors` holds the encoder as transformers' ViT or torchvision's ResNet; heads, target and queue go to
`heads.safetensors`. SimCLR's and BYOL's authors published no PyTorch weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from ssl_core.hub.backbone import RESNET, backbone_keymap
from torch import Tensor

from ssl_contrastive.config import BYOLConfig, ContrastiveConfig, MoCoConfig, SimCLRConfig, SimSiamConfig
from ssl_core.config import from_dict, to_dict
from ssl_core.hub import backbone
from ssl_core.hub.keymap import VIT_TIMM, Row, prefixed
from ssl_core.hub.layout import Layout, check_shapes

C = TypeVar("C", bound=ContrastiveConfig)

MOCO_AUTHORS: tuple[Row, ...] = (
    *prefixed(RESNET, ours="encoder.", theirs="module.encoder_q."),
    *prefixed(RESNET, ours="key_encoder.", theirs="module.encoder_k."),
    ("projector.{i}.{w}", "module.encoder_q.fc.{i}.{w}"),
    ("key_projector.{i}.{w}", "module.encoder_k.fc.{i}.{w}"),
    ("projector.0.{w}", "module.encoder_q.fc.{w}"),
    ("key_projector.0.{w}", "module.encoder_k.fc.{w}"),
    ("queue", "module.queue"),
    ("queue_ptr", "module.queue_ptr"),
)
"""facebookresearch/moco, v1 and v2; their queue is ours transposed."""

SIMSIAM_AUTHORS: tuple[Row, ...] = (
    *prefixed(RESNET, ours="encoder.", theirs="module.encoder."),
    ("projector.{i}.{b}", "module.encoder.fc.{i}.{b}"),
    ("predictor.{i}.{b}", "module.predictor.{i}.{b}"),
)
"""facebookresearch/simsiam; the frozen bias before the projector's last batch norm goes into its running mean."""

SOLO: tuple[Row, ...] = (
    *prefixed(RESNET, ours="encoder.", theirs="backbone."),
    *prefixed(VIT_TIMM, ours="encoder.", theirs="backbone."),
)
"""solo-learn's encoder."""


def infer(cls: type[C], state: Mapping[str, Tensor]) -> C:
    """Config of a checkpoint without one: the encoder by its shapes, heads and queue too where they are there."""
    return from_dict(cls, to_dict(backbone.infer(cls, state)) | _heads(state))


def _heads(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields that the shapes of the authors' heads and queue say; a checkpoint of an encoder alone has none."""
    linear = sorted(
        int(match[1]) for key in state if (match := re.fullmatch(r"projector\.(\d+)\.weight", key))
        if state[key].ndim == 2
    )  # fmt: skip
    if not linear:
        return {}
    fields: dict[str, Any] = {
        "head_layers": len(linear), "projection": state[f"projector.{linear[-1]}.weight"].shape[0],
    }  # fmt: skip
    if "queue" in state:
        fields["queue"] = state["queue"].shape[-1]
    if "predictor.0.weight" in state:
        fields["predictor_hidden"] = state["predictor.0.weight"].shape[0]
    return fields


def adapt(state: dict[str, Tensor], stored: ContrastiveConfig, wanted: ContrastiveConfig) -> dict[str, Tensor]:
    """`state` for the channels and the image size of `wanted`, and the authors' spellings of queue and bias as ours."""
    state = backbone.adapt(state, stored, wanted)
    queue = state.get("queue")
    if isinstance(stored, MoCoConfig) and queue is not None and queue.shape == (stored.projection, stored.queue):
        state["queue"] = queue.T.contiguous()
    bias, mean = (state.get(f"projector.{name}") for name in ("6.bias", "7.running_mean"))
    if isinstance(stored, SimSiamConfig) and bias is not None and mean is not None:
        check_shapes(state, {"projector.7.running_mean": tuple(bias.shape)})
        state["projector.7.running_mean"] = mean - state.pop("projector.6.bias")
    return state


def _layout(
    cls: type[C], *, heads: tuple[str, ...], head_fields: tuple[str, ...], copies: dict[str, str],
    authors: tuple[Row, ...] = (),
) -> Layout:  # fmt: skip
    return Layout(
        keymap=backbone_keymap(also=(*authors, *SOLO)),
        to_theirs=backbone.to_theirs,
        from_theirs=partial(backbone.from_theirs, cls),
        infer=partial(infer, cls),
        adapt=adapt,
        heads=heads,
        head_fields=head_fields,
        copies=copies,
    )


SIMCLR = _layout(SimCLRConfig, heads=("projector.",), head_fields=("head_layers", "projection"), copies={})
MOCO = _layout(
    MoCoConfig, heads=("projector.", "queue"), head_fields=("head_layers", "projection", "queue"),
    copies={"key_encoder.": "encoder.", "key_projector.": "projector."},
    authors=MOCO_AUTHORS,
)  # fmt: skip
BYOL = _layout(
    BYOLConfig, heads=("projector.", "predictor."), head_fields=("hidden", "projection"),
    copies={"target_encoder.": "encoder.", "target_projector.": "projector."},
)  # fmt: skip
SIMSIAM = _layout(
    SimSiamConfig, heads=("projector.", "predictor."), head_fields=("head_layers", "projection", "predictor_hidden"),
    copies={}, authors=SIMSIAM_AUTHORS,
)  # fmt: skip

EXPORTS = backbone.EXPORTS
"""What `ssl-contrastive export --to` writes; a ResNet's own folder has torchvision's names already."""
