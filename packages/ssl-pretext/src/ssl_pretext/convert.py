"""The encoders' weights elsewhere: transformers' `vit` and `resnet`, timm and torchvision.

The heads stay here: nobody else has a place for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ssl_core.config import BackboneConfig
from ssl_core.hub import backbone
from ssl_core.hub.pretrained import Layout
from ssl_core.hub.resize import adapt_stem
from ssl_pretext.config import ColorizationConfig, JigsawConfig, PretextConfig, RelativePatchConfig, RotationConfig

KEYMAP = backbone.backbone_keymap()
STEMS = ("encoder.conv1.weight", "encoder.patch_embed.proj.weight")


def _layout(cls: type[PretextConfig], *heads: str, fields: tuple[str, ...] = ()) -> Layout:
    return Layout(
        keymap=KEYMAP,
        to_theirs=backbone.to_theirs,
        from_theirs=partial(backbone.from_theirs, cls),
        infer=partial(backbone.infer, cls),
        adapt=backbone.adapt,
        heads=heads,
        head_fields=fields,
    )


ROTATION_LAYOUT = _layout(RotationConfig, "head.")
JIGSAW_LAYOUT = _layout(JigsawConfig, "head.", "embed.", "permutations", fields=("embedding", "hidden", "permutations"))
RELATIVE_PATCH_LAYOUT = _layout(RelativePatchConfig, "head.", "embed.", fields=("embedding", "hidden"))


def lightness_config(encoder: BackboneConfig) -> ColorizationConfig:
    """The config of colorization with this encoder, whatever number of channels its weights have."""
    shared = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(BackboneConfig)}
    for name in ("in_channels", "mean", "std"):
        del shared[name]
    return ColorizationConfig(**shared)


def _adapt(state: dict[str, Tensor], stored: ColorizationConfig, wanted: ColorizationConfig) -> dict[str, Tensor]:
    """`state` for the image size of `wanted`; the stem of an encoder of colours is summed over them."""
    for stem in STEMS:
        if stem in state and state[stem].ndim == 4 and state[stem].shape[1] != 1:
            state = {**state, stem: adapt_stem(state[stem], 1)}
    return backbone.adapt(state, stored.encoder, wanted.encoder)


def _from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> ColorizationConfig:
    return lightness_config(backbone.from_theirs(BackboneConfig, values, preprocessor))


def _infer(state: Mapping[str, Tensor]) -> ColorizationConfig:
    return lightness_config(backbone.infer(BackboneConfig, state))


COLORIZATION_LAYOUT = Layout(
    keymap=KEYMAP,
    to_theirs=lambda config: backbone.to_theirs(config.encoder),
    from_theirs=_from_theirs,
    infer=_infer,
    adapt=_adapt,
    heads=("decoder.", "bins", "prior"),
    head_fields=("target", "bin_size", "hidden"),
)


def _published(method: Any) -> Any:
    """What is exported: the encoder, with its own config where it sees lightness alone."""
    config = method.config.encoder if isinstance(method.config, ColorizationConfig) else method.config
    return SimpleNamespace(config=config, encoder=method.encoder)


EXPORTS = {name: lambda method, write=write: write(_published(method)) for name, write in backbone.EXPORTS.items()}
"""What `ssl-pretext export --to` writes beside our own layout: method -> (tensors, config.json)."""
