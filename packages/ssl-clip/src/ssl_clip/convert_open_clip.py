"""open_clip's folders and checkpoints, whose tensors have OpenAI's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_clip.config import RESNET_STRIDE, CLIPConfig
from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.config_json import positive
from ssl_core.hub.encoders import RESNET
from ssl_core.hub.keymap import KeyMap, Row, prefixed, same

# ---------------------------------------------------------------- names

LAYER: tuple[Row, ...] = (
    ("self_attn.qkv.weight", "attn.in_proj_weight"),
    ("self_attn.qkv.bias", "attn.in_proj_bias"),
    ("self_attn.out_proj.{w}", "attn.out_proj.{w}"),
    ("mlp.fc1.{w}", "mlp.c_fc.{w}"),
    ("mlp.fc2.{w}", "mlp.c_proj.{w}"),
    ("layer_norm1.{w}", "ln_1.{w}"),
    ("layer_norm2.{w}", "ln_2.{w}"),
)
"""A block."""
VISION: tuple[Row, ...] = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.{w}", "visual.ln_pre.{w}"),
    ("vision_model.post_layernorm.{w}", "visual.ln_post.{w}"),
    ("visual_projection.weight", "visual.proj"),
    *prefixed(LAYER, ours="vision_model.encoder.layers.{i}.", theirs="visual.transformer.resblocks.{i}."),
)
TEXT: tuple[Row, ...] = (
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.{w}", "ln_final.{w}"),
    ("text_projection.weight", "text_projection"),
    *prefixed(LAYER, ours="text_model.encoder.layers.{i}.", theirs="transformer.resblocks.{i}."),
    *same("logit_scale", "logit_bias"),
)
ROWS = (*VISION, *TEXT)
"""A model whose image tower is a ViT."""
TRANSPOSED = ("visual.proj", "text_projection")
"""The two projections, which are (in, out) there."""
RESNET_TOWER: tuple[Row, ...] = (
    *same(*(name for i in (1, 2, 3) for name in (f"conv{i}.weight", f"bn{i}.{{b}}"))),
    *same("attnpool.positional_embedding", *(f"attnpool.{name}_proj.{{w}}" for name in "qkvc")),
    *(row for row in RESNET if row[0].startswith("layer")),
)
"""OpenAI's ResNet, which has the same names here and there."""

# ---------------------------------------------------------------- open_clip_config.json

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
TEXT_NAMES = {
    "text_dim": "width",
    "text_heads": "heads",
    "text_depth": "layers",
    "mlp_ratio": "mlp_ratio",
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "text_pool": "pool_type",
}
"""Our fields and their names in text_cfg. The defaults are the same, except the pooling's."""
KNOWN = (
    "embed_dim vision_cfg text_cfg quick_gelu init_logit_bias init_logit_scale custom_text",
    "image_size layers width head_width mlp_ratio patch_size patch_dropout norm_kwargs",
    "eos_id norm_kwargs hf_tokenizer_name tokenizer_kwargs tokenizer_mode pad_id " + " ".join(TEXT_NAMES.values()),
)
"""Options of model_cfg, vision_cfg and text_cfg that are read, or that change nothing here."""


def files(folder: Path) -> tuple[Path, Path] | None:
    """(weights, config) of a folder of open_clip, else None.

    A folder with transformers' config.json beside open_clip's is not one. Raises FileNotFoundError
    when such a folder holds no weights.
    """
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(WEIGHTS)}")
    return weights, folder / CONFIG


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object `name` of a config.json, empty when absent; ConfigError when it is no object."""
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{name} = {found!r}: expected an object")
    return found


def from_theirs(values: dict[str, Any]) -> CLIPConfig:
    """Our config of an open_clip_config.json; ConfigError for a model that we do not have."""
    model = section(values, "model_cfg") if "model_cfg" in values else values
    vision, text, pixels = section(model, "vision_cfg"), section(model, "text_cfg"), section(values, "preprocess_cfg")
    # An option that is switched off changes nothing.
    for options, known in zip((model, vision, text), KNOWN, strict=True):
        for key in sorted(options.keys() - set(known.split())):
            _refuse(f"{key} = {options[key]!r} is not supported", options[key] not in (None, False))

    # The image tower: a ResNet has a list of layers.
    layers, width = vision.get("layers", 12), positive(vision, "width", 768)
    if resnet := isinstance(layers, list | tuple):
        tower = {"tower": "resnet", "stages": tuple(layers), "patch_size": RESNET_STRIDE}
    else:
        tower = {"depth": layers, "patch_size": positive(vision, "patch_size", 16)}
    heads = (32 * width if resnet else width) // positive(vision, "head_width", 64)
    tower |= {"dim": width, "heads": heads, "image_size": vision.get("image_size", 224)}
    tower |= {key: pixels[key] for key in ("mean", "std") if key in pixels}

    # What our config has once must be the same in both towers.
    # A ResNet has neither MLP nor LayerNorm.
    of_image, of_text = (float(part.get("mlp_ratio", 4.0)) for part in (vision, text))
    _refuse("mlp_ratio differs between the towers", not resnet and of_image != of_text)
    of_image, of_text = (section(part, "norm_kwargs").get("eps", 1e-5) for part in (vision, text))
    differ = f"norm_kwargs.eps is {of_image} in the image and {of_text} in the text tower"
    _refuse(differ, not resnet and of_image != of_text)

    # The end of a text is found by its id, or as the largest id there is.
    pool, vocabulary = text.get("pool_type", "argmax"), positive(text, "vocab_size", 49408)
    _refuse(f"pool_type = {pool!r} is not supported", pool not in ("argmax", "eos"))
    end = text.get("eos_id", 2) if pool == "eos" else vocabulary - 1
    words = {ours: text[theirs] for ours, theirs in TEXT_NAMES.items() if theirs in text}
    words |= {"text_pool": pool, "eos_token_id": end, "layer_norm_eps": of_text}

    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    loss = "siglip" if model.get("init_logit_bias") is not None else "clip"
    both = {"embed_dim": positive(model, "embed_dim", 512), "activation": activation, "loss": loss}
    return from_dict(CLIPConfig, {**tower, **words, **both})


def _refuse(what: str, when: bool) -> None:
    if when:
        raise ConfigError(f"{what}: use open_clip for this model")


def to_theirs(state: Mapping[str, Tensor], config: CLIPConfig) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """(tensors, open_clip_config.json, that name), for `open_clip.create_model("local-dir:…")`.

    Raises ConfigError for a plain ViT, which open_clip does not have.
    """
    if config.tower == "vit":
        raise ConfigError("open_clip has no plain ViT as image tower: this model is only read by ssl-clip")
    # An epsilon is named only when it is not the default.
    norm = {} if config.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": config.layer_norm_eps}}
    text = {theirs: getattr(config, ours) for ours, theirs in TEXT_NAMES.items()} | norm
    if config.text_pool == "eos":
        text["eos_id"] = config.eos_token_id
    vision = {"image_size": config.image_size, "width": config.dim, "head_width": config.image_width // config.heads}
    if config.tower == "resnet":
        rows = (*TEXT, *prefixed(RESNET_TOWER, ours="vision_model.", theirs="visual."))
        vision |= {"layers": list(config.stages), "patch_size": None}
    else:
        rows = ROWS
        vision |= {"layers": config.depth, "patch_size": config.patch_size, "mlp_ratio": config.mlp_ratio, **norm}
    quick, bias = config.activation == "quick_gelu", {"init_logit_bias": -10} if config.loss == "siglip" else {}
    model = {"embed_dim": config.embed_dim, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text, **bias}
    pixels = {"mean": list(config.mean), "std": list(config.std), "interpolation": "bicubic", "resize_mode": "shortest"}

    # Its projections are (in, out).
    named, _ = KeyMap(rows=rows).to_theirs(state)
    tensors = {key: tensor.T.contiguous() if key in TRANSPOSED else tensor for key, tensor in named.items()}
    return tensors, {"model_cfg": model, "preprocess_cfg": pixels}, CONFIG
