"""The encoders' weights elsewhere: transformers' `vit` and `resnet`, timm and torchvision.

The heads go to heads.safetensors, because no other project has a place for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ssl_core.config import BackboneConfig
from ssl_core.hub import encoders
from ssl_core.hub.encoders import encoder_layout
from ssl_core.hub.layout import Export
from ssl_core.hub.resize import adapt_stem, positions
from ssl_pretext.config import ColorizationConfig, JigsawConfig, RelativePatchConfig, RotationConfig

STEMS = ("encoder.conv1.weight", "encoder.patch_embed.proj.weight")


def lightness_config(encoder: BackboneConfig) -> ColorizationConfig:
    """The config of colorization with this encoder, whatever its number of channels."""
    names = {field.name for field in dataclasses.fields(BackboneConfig)} - {"in_channels", "mean", "std"}
    return ColorizationConfig(**{name: getattr(encoder, name) for name in names})


def summed_stem(state: dict[str, Tensor], stored: ColorizationConfig) -> dict[str, Tensor]:
    """`state` of an encoder of colours with its stem summed over them.

    On one channel this equals what the encoder makes of grey pictures.
    """
    for stem in STEMS:
        if stem in state and state[stem].ndim == 4 and state[stem].shape[1] != 1:
            state = {**state, stem: adapt_stem(state[stem], 1)}
    return state


def of_lightness(write: Callable[..., Any]) -> Export:
    """An export of the encoder with its own config, which says one channel."""
    return lambda state, config: write(state, config.encoder)


LAYOUTS = {
    "rotation": encoder_layout(RotationConfig, heads=("head.",)),
    "jigsaw": encoder_layout(
        JigsawConfig, heads=("head.", "embed.", "permutations"), head_fields=("embedding", "hidden", "permutations")
    ),
    "colorization": encoder_layout(
        ColorizationConfig,
        # The encoder is published with a config of its own, which says one channel.
        to_theirs=lambda config: encoders.to_theirs(config.encoder),
        from_theirs=lambda *folder: lightness_config(encoders.from_theirs(BackboneConfig, *folder)),
        infer=lambda state: lightness_config(encoders.infer(BackboneConfig, state)),
        tidy=summed_stem,
        resize=((r"encoder\.pos_embed", positions),),  # the stem keeps its one channel
        others={},  # only `encode` makes the lightness that this encoder sees
        heads=("decoder.", "bins", "prior"),
        head_fields=("target", "bin_size", "hidden"),
        exports={"transformers": of_lightness(encoders.to_transformers), "timm": of_lightness(encoders.to_timm)},
    ),
    "relative-patch": encoder_layout(
        RelativePatchConfig, heads=("head.", "embed."), head_fields=("embedding", "hidden")
    ),
}
