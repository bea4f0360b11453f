"""The tokenizer's weights elsewhere: transformers' `flava_image_codebook`, and DALL-E's pickles.

The codebook is the encoder alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_beit.config import DVAEConfig
from ssl_beit.dalle import is_dalle, read_dalle
from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.config_json import positive, read, statistics, written
from ssl_core.hub.encoders import depth_of
from ssl_core.hub.keymap import KeyMap, Row, prefixed
from ssl_core.hub.layout import Layout
from ssl_core.hub.resize import pixels, stem

PATHS = ("id_path", *(f"res_path.conv_{c}" for c in range(1, 5)))
LAYERS = (
    "blocks.input",
    "blocks.output.conv",
    *(f"blocks.group_{g}.block_{{i}}.{path}" for g in range(1, 5) for path in PATHS),
)
"""The convolutions of an encoder and of a decoder."""


def in_flava(layer: str) -> str:
    """The name that transformers' FlavaImageCodebook has for a layer."""
    return layer.replace(".block_", ".group.block_").replace("res_path.", "res_path.path.")


FLAVA: tuple[Row, ...] = tuple((f"{layer}.{{w}}", f"{in_flava(layer)}.{{w}}") for layer in LAYERS)
DALLE: tuple[Row, ...] = tuple(
    (f"{part}.{layer}.{ours}", f"{part}.{layer}.{theirs}")
    for part in ("encoder", "decoder")
    for layer in LAYERS
    for ours, theirs in (("weight", "w"), ("bias", "b"))
)
"""Both parts as DALL-E's code names them, each with its file's name in front."""

KEYMAP = KeyMap(
    rows=prefixed(FLAVA, ours="average.encoder."),
    # DALL-E's files, and the codebook inside of a whole Flava.
    also=(*prefixed(DALLE, ours="average."), *prefixed(FLAVA, ours="average.encoder.", theirs="image_codebook.")),
)

NAMES = {"hidden": "hidden_size", "blocks": "num_blocks_per_group", "vocab": "vocab_size"}
"""Our config fields and transformers' names for the same value."""
FIXED = {"num_groups": 4}


def to_theirs(config: DVAEConfig) -> dict[str, Any]:
    """config.json of transformers' FlavaImageCodebook."""
    channels = {"input_channels": config.in_channels}
    return written("flava_image_codebook", "FlavaImageCodebook", config, NAMES, **channels, **FIXED)


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> DVAEConfig:
    """Our config of transformers' FlavaImageCodebook; ConfigError for another architecture."""
    known = read(values, "flava_image_codebook", names=NAMES, fixed=FIXED, by="DVAE")
    channels = positive(values, "input_channels", 3)
    return from_dict(DVAEConfig, {**known, **statistics(DVAEConfig, channels)})


def infer(state: Mapping[str, Tensor]) -> DVAEConfig:
    """Config of DALL-E's tensors, from their shapes; ConfigError when they are not a dVAE's."""
    encoder, decoder = "average.encoder.blocks.", "average.decoder.blocks."
    for key in (f"{encoder}input.weight", f"{encoder}output.conv.weight"):
        if key not in state or state[key].ndim != 4:
            raise ConfigError(f"the checkpoint is not a dVAE: it holds no {key} of four dimensions")
    hidden, channels, *_ = state[f"{encoder}input.weight"].shape
    vocab = state[f"{encoder}output.conv.weight"].shape[0]
    fields = {"hidden": hidden, "vocab": vocab, **statistics(DVAEConfig, channels)}
    # Blocks are numbered from 1. The decoder, where there is one, has the embeddings' width.
    fields["blocks"] = depth_of(state, f"{encoder}group_1.block_") - 1
    if f"{decoder}input.weight" in state:
        fields["decoder_init"] = state[f"{decoder}input.weight"].shape[0]
    return DVAEConfig(**fields)


def of_dalle(path: Path) -> tuple[dict[str, Tensor], None] | None:
    """(tensors, no config) of the folder of DALL-E's pickles; None for any other path."""
    return (read_dalle(path), None) if is_dalle(path) else None


def to_transformers(state: Mapping[str, Tensor], config: DVAEConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' FlavaImageCodebook: the averaged encoder."""
    return KEYMAP.to_theirs(state)[0], to_theirs(config)


LAYOUT = Layout(
    keymap=KEYMAP,
    to_theirs=to_theirs,
    from_theirs=from_theirs,
    infer=infer,
    foreign=of_dalle,
    resize=(
        (r"\w+\.encoder\.blocks\.input\.weight", stem),
        # Its rows are (μ, ln b) x channels.
        (r"\w+\.decoder\.blocks\.output\.conv\.(weight|bias)", pixels),
    ),
    copies={"online.": "average."},
    recipe=(
        "kl_weight",
        "kl_warmup",
        "temperature",
        "temperature_decay",
        "ema",
        "crop_pct",
        "crop_scale",
        "flip",
        "turn",
    ),
    exports={"transformers": to_transformers},
)
