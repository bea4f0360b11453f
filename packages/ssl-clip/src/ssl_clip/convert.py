"""CLIP's weights elsewhere: transformers' `clip`; for open_clip and OpenAI `convert_open_clip`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import ssl_clip.convert_open_clip as open_clip
from ssl_clip.config import CLIPConfig
from ssl_clip.convert_open_clip import section
from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.config_json import pixels, positive, read, written
from ssl_core.hub.encoders import VIT_NAMES, VIT_TIMM, depth_of
from ssl_core.hub.keymap import KeyMap, Row, prefixed, same
from ssl_core.hub.layout import OPENED, Layout, read_json, read_tensors
from ssl_core.hub.resize import positions, stem
from ssl_core.patches import square_grid

# ---------------------------------------------------------------- names

LAYER: tuple[Row, ...] = (
    ("self_attn.qkv.{w}", tuple(f"self_attn.{name}_proj.{{w}}" for name in "qkv")),
    *same("self_attn.out_proj.{w}", "mlp.fc1.{w}", "mlp.fc2.{w}", "layer_norm1.{w}", "layer_norm2.{w}"),
)
"""A block in transformers' files, and in its memory."""
VISION: tuple[Row, ...] = (
    *same("embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"),
    *same("pre_layrnorm.{w}", "post_layernorm.{w}"),
    *prefixed(LAYER, ours="encoder.layers.{i}.", theirs="encoder.layers.{i}."),
)
TEXT: tuple[Row, ...] = (
    *same("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "final_layer_norm.{w}"),
    *prefixed(LAYER, ours="encoder.layers.{i}.", theirs="encoder.layers.{i}."),
)


WRAPPED = r"\A((module|model|_orig_mod)\.)*(text\.)?"
"""What stands before the names of a training checkpoint, and before those of open_clip's custom
text tower."""


class CLIPKeyMap(KeyMap):
    """A `KeyMap` that also reads what open_clip and OpenAI store in another form.

    It strips what wraps the names of a training checkpoint, turns the projections, and makes a
    scalar of a scale that was stored as a vector of one.
    """

    def to_ours(self, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        # The projections are turned below, so what wraps their names goes first.
        named = {re.sub(WRAPPED, "", key): tensor for key, tensor in theirs.items()}
        if "visual.bn1.weight" in named and "visual.conv1.weight" in named:  # a ResNet's stem, not a ViT's patches
            named["vision_model.conv1.weight"] = named.pop("visual.conv1.weight")
        for key, tensor in named.items():
            if key in open_clip.TRANSPOSED and tensor.ndim == 2:
                named[key] = tensor.T
            elif key.startswith("logit_") and tensor.numel() == 1:
                named[key] = tensor.reshape(())
        return super().to_ours(named)


KEYMAP = CLIPKeyMap(
    rows=(
        *same("logit_scale", "visual_projection.weight", "text_projection.weight"),
        *prefixed((*VISION, *VIT_TIMM, *open_clip.RESNET_TOWER), ours="vision_model.", theirs="vision_model."),
        *prefixed(TEXT, ours="text_model.", theirs="text_model."),
    ),
    also=(*open_clip.ROWS, *prefixed(open_clip.RESNET_TOWER, ours="vision_model.", theirs="visual.")),
    drop=(r".*\.position_ids", r"attn_mask", r"input_resolution|context_length|vocab_size"),
)

# ---------------------------------------------------------------- transformers' config.json

VISION_NAMES = {**VIT_NAMES, "image_size": "image_size", "in_channels": "num_channels", "activation": "hidden_act"}
"""Our fields of the image tower and transformers' names in vision_config."""
TEXT_NAMES = {
    **{f"text_{name}": VIT_NAMES[name] for name in ("dim", "depth", "heads")},
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
"""Our fields of the text tower and transformers' names in text_config."""
LEGACY_EOS = 2
"""By this end-of-text id transformers means the token of the largest id, as in OpenAI's code."""


def to_theirs(config: CLIPConfig) -> dict[str, Any]:
    """config.json of transformers' CLIPModel; of a type of our own for another image tower."""
    vision = {theirs: getattr(config, ours) for ours, theirs in VISION_NAMES.items()}
    vision |= {"model_type": "clip_vision_model", "intermediate_size": round(config.dim * config.mlp_ratio)}
    text = {theirs: getattr(config, ours) for ours, theirs in TEXT_NAMES.items()}
    text |= {"model_type": "clip_text_model", "intermediate_size": round(config.text_dim * config.mlp_ratio)}
    # Start and end are the last two tokens of the vocabulary.
    end = config.eos_token_id
    text |= {"bos_token_id": max(0, end - 1), "pad_token_id": end}
    text |= {"eos_token_id": LEGACY_EOS if config.text_pool == "argmax" else end}
    space = {"projection_dim": config.embed_dim}
    towers = {"vision_config": {**vision, **space}, "text_config": {**text, **space}}
    names = ("clip", "CLIPModel") if config.tower == "clip" else ("ssl_clip", "CLIP")
    return written(*names, config, {"embed_dim": "projection_dim"}, logit_scale_init_value=2.6592, **towers)


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> CLIPConfig:
    """Our config of a transformers folder; the recipe's fields keep the paper's values.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    read(values, "clip", names={}, fixed={}, by="CLIP")
    vision, text = section(values, "vision_config"), section(values, "text_config")
    # Our config has these once, for both towers.
    for key, default in (("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)):
        of_image, of_text = vision.get(key, default), text.get(key, default)
        if of_image != of_text:
            raise ConfigError(
                f"{key} is {of_image!r} in the image and {of_text!r} in the text tower: use transformers for this model"
            )
    # What transformers leaves out has its default, which is ours: OpenAI's ViT-B/32.
    eos = text.get("eos_token_id", 49407)
    fields = {
        **{ours: vision[theirs] for ours, theirs in VISION_NAMES.items() if theirs in vision},
        **{ours: text[theirs] for ours, theirs in TEXT_NAMES.items() if theirs in text},
        **pixels(CLIPConfig, vision, preprocessor),
        "crop_pct": _crop_pct(preprocessor),
        "mlp_ratio": _ratio(vision, text),
        "embed_dim": values.get("projection_dim", 512),
        "text_pool": "argmax" if eos == LEGACY_EOS else "eos",
        "eos_token_id": positive(text, "vocab_size", 49408) - 1 if eos == LEGACY_EOS else eos,
    }
    return from_dict(CLIPConfig, fields)


def _ratio(vision: dict[str, Any], text: dict[str, Any]) -> float:
    """Hidden width over width, which both towers share."""
    hidden = positive(vision, "intermediate_size", 3072), positive(text, "intermediate_size", 2048)
    widths = positive(vision, "hidden_size", 768), positive(text, "hidden_size", 512)
    # Of the two ratios one may be rounded.
    for ratio in (hidden[0] / widths[0], hidden[1] / widths[1]):
        if hidden == tuple(round(width * ratio) for width in widths):
            return ratio
    what = "intermediate_size of image and text tower have different ratios: use transformers for this model"
    raise ConfigError(what)


def _crop_pct(preprocessor: dict[str, Any]) -> float:
    """Side of the crop over the shorter side that it is taken from."""
    crop, size = preprocessor.get("crop_size"), preprocessor.get("size")
    height = crop.get("height") if isinstance(crop, dict) else crop
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    if type(height) is not int or type(edge) is not int or not 0 < height <= edge:
        return 1.0
    return height / edge


# ---------------------------------------------------------------- other files, and exports


def infer(state: Mapping[str, Tensor]) -> CLIPConfig:
    """Sizes of a checkpoint that holds no config, from its shapes.

    Its activation and its end-of-text rule are in no file, so `CLIP.from_pretrained` asks for a
    config. Raises ConfigError when the tensors are not those of a CLIP with a ViT.
    """
    image, text = "vision_model.embeddings.", "text_model.embeddings."
    names = {f"{image}patch_embedding.weight": 4, f"{image}position_embedding.weight": 2}
    names |= {f"{text}token_embedding.weight": 2, f"{text}position_embedding.weight": 2, "text_projection.weight": 2}
    for key, ndim in names.items():
        if key not in state or state[key].ndim != ndim:
            raise ConfigError(f"the checkpoint is not a CLIP with a ViT: {key} is missing or misshapen")
    # Heads are 64 wide, as in all of OpenAI's models.
    shapes = [state[key].shape for key in names]
    (dim, channels, patch, _), (places, _), (vocabulary, text_dim), (context_length, _), (embed_dim, _) = shapes
    side = square_grid(places - 1)[0] * patch
    tower = {"dim": dim, "heads": max(1, dim // 64), "depth": depth_of(state, "vision_model.encoder.layers.")}
    tower |= {"image_size": side, "patch_size": patch, "in_channels": channels}
    words = {"text_dim": text_dim, "text_heads": max(1, text_dim // 64), "context_length": context_length}
    words |= {"text_depth": depth_of(state, "text_model.encoder.layers."), "text_pool": "argmax"}
    words |= {"vocab_size": vocabulary, "eos_token_id": vocabulary - 1}
    loss = "siglip" if "logit_bias" in state else "clip"
    return from_dict(CLIPConfig, {**tower, **words, "embed_dim": embed_dim, "loss": loss})


def of_open_clip(path: Path) -> tuple[dict[str, Tensor], CLIPConfig] | None:
    """(tensors, config) of an open_clip folder; None for any other path."""
    if (found := open_clip.files(path)) is None:
        return None
    weights, config = found
    return read_tensors(weights, LAYOUTS["clip"]), open_clip.from_theirs(read_json(config))


def to_transformers(state: Mapping[str, Tensor], config: CLIPConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' CLIPModel; ConfigError for another image tower."""
    if config.tower != "clip":
        raise ConfigError(f"transformers' CLIP has no {config.tower!r} image tower: export it to open_clip")
    return KEYMAP.to_theirs(state)[0], to_theirs(config)


LAYOUTS = {
    "clip": Layout(
        keymap=KEYMAP,
        to_theirs=to_theirs,
        from_theirs=from_theirs,
        infer=infer,
        foreign=of_open_clip,
        resize=(
            (r"vision_model\.(embeddings\.patch_embedding|patch_embed\.proj|conv1)\.weight", stem),
            (r"vision_model\.(embeddings\.position_embedding\.weight|pos_embed)", positions),
            (r"vision_model\.attnpool\.positional_embedding", positions),
        ),
        others={"clip": ("transformers", "zero-shot-image-classification", OPENED)},
        exports={"transformers": to_transformers, "open_clip": open_clip.to_theirs},
    )
}
