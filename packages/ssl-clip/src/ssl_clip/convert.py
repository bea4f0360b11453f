"""CLIP's weights elsewhere: transformers' `clip`, open_clip's folders and checkpoints, OpenAI's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.hub.backbone import RESNET, positive
from torch import Tensor

from ssl_clip.config import RESNET_STRIDE, CLIPConfig
from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.keymap import VIT_TIMM, KeyMap, Row, prefixed
from ssl_core.hub.layout import Layout, check_shapes, read_json
from ssl_core.hub.resize import adapt_stem
from ssl_core.patches import interpolate_positions, square_grid

if TYPE_CHECKING:
    from ssl_clip.clip import CLIP

LAYER: tuple[Row, ...] = (
    ("self_attn.qkv.{w}", tuple(f"self_attn.{name}_proj.{{w}}" for name in "qkv")),
    *((name, name) for name in ("self_attn.out_proj.{w}", "mlp.fc1.{w}", "mlp.fc2.{w}", "layer_norm1.{w}", "layer_norm2.{w}")),
)  # fmt: skip
"""A block in transformers' files, and in its memory."""
LAYER_OPENAI: tuple[Row, ...] = (
    ("self_attn.qkv.weight", "attn.in_proj_weight"),
    ("self_attn.qkv.bias", "attn.in_proj_bias"),
    ("self_attn.out_proj.{w}", "attn.out_proj.{w}"),
    ("mlp.fc1.{w}", "mlp.c_fc.{w}"),
    ("mlp.fc2.{w}", "mlp.c_proj.{w}"),
    ("layer_norm1.{w}", "ln_1.{w}"),
    ("layer_norm2.{w}", "ln_2.{w}"),
)
"""A block in OpenAI's and open_clip's files."""

VISION = tuple(
    (name, name)
    for name in (
        "embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight",
        "pre_layrnorm.{w}", "post_layernorm.{w}",
    )
)  # fmt: skip
TEXT = tuple(
    (name, name)
    for name in ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "final_layer_norm.{w}")
)
HEADS = tuple((name, name) for name in ("logit_scale", "visual_projection.weight", "text_projection.weight"))
ATTENTION_POOL = ("attnpool.positional_embedding", *(f"attnpool.{name}_proj.{{w}}" for name in "qkvc"))
STEM = tuple(f"{part}" for i in (1, 2, 3) for part in (f"conv{i}.weight", f"bn{i}.{{b}}"))
RESNET_TOWER: tuple[Row, ...] = (
    *((name, name) for name in (*STEM, *ATTENTION_POOL)),
    *(row for row in RESNET if row[0].startswith("layer")),
)
"""OpenAI's ResNet, as it names it."""

OPEN_CLIP: tuple[Row, ...] = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.{w}", "visual.ln_pre.{w}"),
    ("vision_model.post_layernorm.{w}", "visual.ln_post.{w}"),
    ("visual_projection.weight", "visual.proj"),
    *prefixed(LAYER_OPENAI, ours="vision_model.encoder.layers.{i}.", theirs="visual.transformer.resblocks.{i}."),
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.{w}", "ln_final.{w}"),
    ("text_projection.weight", "text_projection"),
    *prefixed(LAYER_OPENAI, ours="text_model.encoder.layers.{i}.", theirs="transformer.resblocks.{i}."),
    ("logit_scale", "logit_scale"),
    ("logit_bias", "logit_bias"),
)
"""OpenAI's and open_clip's files, a ViT's; the two projections are transposed in them."""
OPEN_CLIP_RESNET = (
    *(row for row in OPEN_CLIP if not str(row[1]).startswith("visual.")),
    *prefixed(RESNET_TOWER, ours="vision_model.", theirs="visual."),
)
TRANSPOSED = ("visual.proj", "text_projection")


class CLIPKeyMap(KeyMap):
    """A `KeyMap` that also turns OpenAI's projections, strips what wraps a training checkpoint's names, and reads a scale
    that was stored as a vector of one."""

    def to_ours(self, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        named = {key.removeprefix("module.").removeprefix("text."): tensor for key, tensor in theirs.items()}
        if "visual.bn1.weight" in named and "visual.conv1.weight" in named:  # a ResNet's stem, not a ViT's patches
            named["vision_model.conv1.weight"] = named.pop("visual.conv1.weight")
        turned = {key: tensor.T if key in TRANSPOSED and tensor.ndim == 2 else tensor for key, tensor in named.items()}
        scalars = {key: t.reshape(()) for key, t in turned.items() if key.startswith("logit_") and t.numel() == 1}
        return super().to_ours({**turned, **scalars})


KEYMAP = CLIPKeyMap(
    rows=(
        *HEADS,
        *prefixed(VISION, ours="vision_model.", theirs="vision_model."),
        *prefixed(TEXT, ours="text_model.", theirs="text_model."),
        *prefixed(LAYER, ours="vision_model.encoder.layers.{i}.", theirs="vision_model.encoder.layers.{i}."),
        *prefixed(LAYER, ours="text_model.encoder.layers.{i}.", theirs="text_model.encoder.layers.{i}."),
        *prefixed(VIT_TIMM, ours="vision_model.", theirs="vision_model."),
        *prefixed(RESNET_TOWER, ours="vision_model.", theirs="vision_model."),
    ),
    also=(*OPEN_CLIP, *prefixed(RESNET_TOWER, ours="vision_model.", theirs="visual.")),
    drop=(r".*\.position_ids", r"attn_mask"),
)

VISION_NAMES = {
    "dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "image_size": "image_size",
    "patch_size": "patch_size", "in_channels": "num_channels", "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
TEXT_NAMES = {
    "text_dim": "hidden_size", "text_depth": "num_hidden_layers", "text_heads": "num_attention_heads",
    "vocab_size": "vocab_size", "context_length": "max_position_embeddings", "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
LEGACY_EOS = 2
"""By this end-of-text id transformers says that the token of the largest id is meant, as in OpenAI's code."""


def to_theirs(config: CLIPConfig) -> dict[str, Any]:
    """config.json of transformers' CLIPModel; of our own type where transformers has no such image tower."""
    argmax = config.text_pool == "argmax"
    vision = {theirs: getattr(config, ours) for ours, theirs in VISION_NAMES.items()}
    text = {theirs: getattr(config, ours) for ours, theirs in TEXT_NAMES.items()}
    shared = {"projection_dim": config.embed_dim}
    return {
        "model_type": "clip" if config.tower == "clip" else "ssl_clip",
        "architectures": ["CLIPModel" if config.tower == "clip" else "CLIP"],
        "dtype": "float32",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "vision_config": {
            "model_type": "clip_vision_model", **vision, **shared,
            "intermediate_size": round(config.dim * config.mlp_ratio),
        },
        "text_config": {
            "model_type": "clip_text_model", **text, **shared,
            "intermediate_size": round(config.text_dim * config.mlp_ratio),
            "bos_token_id": max(0, config.eos_token_id - 1), "pad_token_id": config.eos_token_id,
            "eos_token_id": LEGACY_EOS if argmax else config.eos_token_id,
        },
    }  # fmt: skip


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> CLIPConfig:
    """Our config of a transformers folder; the recipe's fields keep the paper's values.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    if values.get("model_type") != "clip":
        raise ConfigError(f"model_type is {values.get('model_type')!r}: CLIP reads 'clip'")
    vision, text = (_section(values, name) for name in ("vision_config", "text_config"))
    fields: dict[str, Any] = {ours: vision[theirs] for ours, theirs in VISION_NAMES.items() if theirs in vision}
    fields |= {ours: text[theirs] for ours, theirs in TEXT_NAMES.items() if theirs in text}
    for key, default in (("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)):
        if vision.get(key, default) != text.get(key, default):
            raise ConfigError(f"{key} is {vision.get(key)!r} in the image and {text.get(key)!r} in the text tower: "
                              "use transformers for this model")  # fmt: skip
    eos = text.get("eos_token_id", 49407)
    fields["text_pool"] = "argmax" if eos == LEGACY_EOS else "eos"
    fields["eos_token_id"] = positive(text, "vocab_size", 49408) - 1 if eos == LEGACY_EOS else eos
    fields["embed_dim"] = values.get("projection_dim", 512)
    fields["mlp_ratio"] = _ratio(vision, text)
    fields |= {ours: preprocessor[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
               if theirs in preprocessor}  # fmt: skip
    return from_dict(CLIPConfig, {**fields, "crop_pct": _crop_pct(preprocessor)})


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{name} = {section!r}: expected an object")
    return section


def _ratio(vision: dict[str, Any], text: dict[str, Any]) -> float:
    hidden = positive(vision, "intermediate_size", 3072), positive(text, "intermediate_size", 2048)
    widths = positive(vision, "hidden_size", 768), positive(text, "hidden_size", 512)
    for ratio in (hidden[0] / widths[0], hidden[1] / widths[1]):
        if hidden == tuple(round(width * ratio) for width in widths):
            return ratio
    raise ConfigError(
        "intermediate_size of image and text tower have different ratios: use transformers for this model"
    )


def _crop_pct(preprocessor: dict[str, Any]) -> float:
    """Side of the crop over the shorter side that it is taken from."""
    crop, size = preprocessor.get("crop_size"), preprocessor.get("size")
    height = crop.get("height") if isinstance(crop, dict) else crop
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    if type(height) is not int or type(edge) is not int or not 0 < height <= edge:
        return 1.0
    return height / edge


def infer(state: Mapping[str, Tensor]) -> CLIPConfig:
    """Sizes of a checkpoint that holds no config; its activation and its end-of-text rule are in no file, so that
    `CLIP.from_pretrained` asks for a config. Raises ConfigError when the tensors are not a CLIP's with a ViT."""
    stem, positions = (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
    )
    tokens, places = "text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"
    for key, ndim in ((stem, 4), (positions, 2), (tokens, 2), (places, 2), ("text_projection.weight", 2)):
        if key not in state or state[key].ndim != ndim:
            raise ConfigError(f"the checkpoint is not a CLIP with a ViT: {key} is missing or misshapen")
    dim, channels, patch, _ = state[stem].shape
    rows, _ = square_grid(state[positions].shape[0] - 1)
    return CLIPConfig(
        dim=dim, heads=max(1, dim // 64), patch_size=patch, image_size=rows * patch, in_channels=channels,
        depth=_depth(state, "vision_model."), text_depth=_depth(state, "text_model."),
        text_dim=state[tokens].shape[1], text_heads=max(1, state[tokens].shape[1] // 64),
        vocab_size=state[tokens].shape[0], eos_token_id=state[tokens].shape[0] - 1,
        context_length=state[places].shape[0], embed_dim=state["text_projection.weight"].shape[0],
        text_pool="argmax", loss="siglip" if "logit_bias" in state else "clip",
    )  # fmt: skip


def _depth(state: Mapping[str, Tensor], tower: str) -> int:
    prefix = f"{tower}encoder.layers."
    return 1 + max((int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)), default=-1)


def adapt(state: dict[str, Tensor], stored: CLIPConfig, wanted: CLIPConfig) -> dict[str, Tensor]:
    """`state` for the channels and the image size of `wanted`. Raises WeightsMismatch when it is not of `stored`'s."""
    stem, positions = {
        "clip": ("vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight"),
        "resnet": ("vision_model.conv1.weight", "vision_model.attnpool.positional_embedding"),
        "vit": ("vision_model.patch_embed.proj.weight", "vision_model.pos_embed"),
    }[stored.tower]
    check_shapes(state, {"text_projection.weight": (stored.embed_dim, stored.text_dim),
                         "text_model.embeddings.token_embedding.weight": (stored.vocab_size, stored.text_dim)})  # fmt: skip
    state = dict(state)
    if stored.in_channels != wanted.in_channels and stem in state:
        state[stem] = adapt_stem(state[stem], wanted.in_channels)
    if stored.grid != wanted.grid and positions in state:
        old = state[positions]
        new = interpolate_positions(old.view(1, -1, old.shape[-1]), stored.grid, wanted.grid, wanted.pos_interp)
        state[positions] = new if old.ndim == 3 else new[0]
    return state


LAYOUT = Layout(keymap=KEYMAP, to_theirs=to_theirs, from_theirs=from_theirs, infer=infer, adapt=adapt)

# ---------------------------------------------------------------- open_clip

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
VISION_KEYS = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout", "norm_kwargs"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id", "norm_kwargs",
             "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id"}  # fmt: skip
TOP_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_bias", "init_logit_scale", "custom_text"}


def is_open_clip(folder: Path) -> bool:
    """Whether a folder has open_clip's config and not transformers' beside it."""
    return (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file()


def from_open_clip(values: dict[str, Any]) -> CLIPConfig:
    """Our config of an open_clip_config.json. Raises ConfigError for a model that we do not have."""
    model = _section(values, "model_cfg") if "model_cfg" in values else values
    vision, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
    for section, known in ((model, TOP_KEYS), (vision, VISION_KEYS), (text, TEXT_KEYS)):
        foreign = sorted(key for key in section.keys() - known if section[key] not in (None, False))
        if foreign:
            raise ConfigError(f"{foreign[0]} = {section[foreign[0]]!r} is not supported: use open_clip for this model")
    layers, width = vision.get("layers", 12), positive(vision, "width", 768)
    resnet = isinstance(layers, list | tuple)
    head = positive(vision, "head_width", 64)
    vocab = positive(text, "vocab_size", 49408)
    pool = {"argmax": "argmax", "eos": "eos"}.get(text.get("pool_type", "argmax"))
    if pool is None:
        raise ConfigError(f"pool_type = {text['pool_type']!r} is not supported: use open_clip for this model")
    ratio = float(text.get("mlp_ratio", 4.0))
    if not resnet and vision.get("mlp_ratio", 4.0) != ratio:
        raise ConfigError("mlp_ratio differs between the towers: use open_clip for this model")
    tower: dict[str, Any] = {"tower": "resnet", "stages": tuple(layers), "patch_size": RESNET_STRIDE} if resnet else {
        "depth": layers, "patch_size": positive(vision, "patch_size", 16)}  # fmt: skip
    vision_eps, text_eps = (_section(section, "norm_kwargs").get("eps", 1e-5) for section in (vision, text))
    if not resnet and vision_eps != text_eps:  # a ResNet has no LayerNorm
        raise ConfigError(f"norm_kwargs.eps is {vision_eps} in the image and {text_eps} in the text tower: "
                          "use open_clip for this model")  # fmt: skip
    pixels = _section(values, "preprocess_cfg")
    fields = {
        **tower, "dim": width, "heads": (32 * width if resnet else width) // head, "mlp_ratio": ratio,
        "image_size": vision.get("image_size", 224), "embed_dim": positive(model, "embed_dim", 512),
        "text_dim": text.get("width", 512), "text_heads": text.get("heads", 8), "text_depth": text.get("layers", 12),
        "vocab_size": vocab, "context_length": text.get("context_length", 77), "text_pool": pool,
        "eos_token_id": text.get("eos_id", 2) if pool == "eos" else vocab - 1,
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "loss": "siglip" if model.get("init_logit_bias") is not None else "clip", "layer_norm_eps": text_eps,
        **{key: pixels[key] for key in ("mean", "std") if key in pixels},
    }  # fmt: skip
    return from_dict(CLIPConfig, fields)


def to_open_clip(method: CLIP) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """(tensors, open_clip_config.json, that name), for `open_clip.create_model("local-dir:…")`.

    Raises ConfigError for a plain ViT, which open_clip does not have.
    """
    config = method.config
    if config.tower == "vit":
        raise ConfigError("open_clip has no plain ViT as image tower: this model is only read by ssl-clip")
    resnet = config.tower == "resnet"
    width = 32 * config.dim if resnet else config.dim
    norm = {} if config.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": config.layer_norm_eps}}
    vision: dict[str, Any] = {
        "image_size": config.image_size, "layers": list(config.stages) if resnet else config.depth, "width": config.dim,
        "head_width": width // config.heads, "patch_size": None if resnet else config.patch_size,
        **({} if resnet else {"mlp_ratio": config.mlp_ratio, **norm}),
    }  # fmt: skip
    eos = {} if config.text_pool == "argmax" else {"eos_id": config.eos_token_id}
    text = {
        "context_length": config.context_length, "vocab_size": config.vocab_size, "width": config.text_dim,
        "heads": config.text_heads, "layers": config.text_depth, "mlp_ratio": config.mlp_ratio,
        "pool_type": config.text_pool, **eos, **norm,
    }  # fmt: skip
    model = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "vision_cfg": vision,
        "text_cfg": text,
    }
    if config.loss == "siglip":
        model["init_logit_bias"] = -10
    rows = OPEN_CLIP_RESNET if resnet else OPEN_CLIP
    state, _ = KeyMap(rows=rows).to_theirs(method.state_dict())
    state = {key: tensor.T.contiguous() if key in TRANSPOSED else tensor for key, tensor in state.items()}
    pixels = {"mean": list(config.mean), "std": list(config.std), "interpolation": "bicubic", "resize_mode": "shortest"}
    return state, {"model_cfg": model, "preprocess_cfg": pixels}, OPEN_CLIP_CONFIG


def to_transformers(method: CLIP) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config.json) of transformers' CLIPModel.

    Raises ConfigError for an image tower that it does not have.
    """
    if method.config.tower != "clip":
        raise ConfigError(f"transformers' CLIP has no {method.config.tower!r} image tower: export it to open_clip")
    return KEYMAP.to_theirs(method.state_dict())[0], to_theirs(method.config)


EXPORTS = {"transformers": to_transformers, "open_clip": to_open_clip}
"""What `ssl-clip export --to` writes beside our own layout."""


def read_open_clip(folder: Path) -> tuple[Path, CLIPConfig]:
    """(weights file, config) of an open_clip folder."""
    file = next((folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(OPEN_CLIP_WEIGHTS)}")
    return file, from_open_clip(read_json(folder / OPEN_CLIP_CONFIG))
