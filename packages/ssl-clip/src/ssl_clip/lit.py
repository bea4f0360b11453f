"""LiT: Zero-Shot Transfer with Locked-image text Tuning (Zhai et al. 2021, arXiv 2111.07991).

The image tower is a ViT that was pretrained without captions, here by ssl-mae, ssl-dino and the
like or by anyone who publishes a ViT in transformers' layout. A text tower learns to describe what
it sees. Locked, the image tower keeps its weights (the paper's "Lu"); unlocked, it starts from them
("Uu").
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ssl_clip.config import CLIPConfig
from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_core.encoder import PooledViT
from ssl_core.hub.config_json import positive
from ssl_core.hub.encoders import VIT, VIT_NAMES, vit_rows
from ssl_core.hub.format import SECTION
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import CONFIG, PREPROCESSOR, WEIGHTS, WeightsMismatch, read_json, verify_config
from ssl_core.hub.remote import resolve
from ssl_core.hub.weights_file import load_weights, verify_sums

KEYMAP = KeyMap(rows=VIT, also=vit_rows(""))
NAMES = {**VIT_NAMES, "image_size": "image_size", "in_channels": "num_channels"}
"""Fields of a plain ViT and transformers' names for them."""


def plain_vit(config: CLIPConfig) -> PooledViT:
    """The ViT of our other packages: images (b, c, h, w) -> CLS token or mean of patches (b, d)."""
    names = ("patch_size", "in_channels", "dim", "depth", "heads", "pos_interp")
    own = {"mlp_ratio": config.vit_mlp_ratio, "layer_norm_eps": config.vit_layer_norm_eps, "pool": config.vit_pool}
    return PooledViT(image_size=config.size, **{name: getattr(config, name) for name in names}, **own)


def settle(config: CLIPConfig, data: Any) -> CLIPConfig:
    """`config` with the image tower and the pixels of `init_image`, where one is given.

    Raises ConfigError when the folder is not a ViT's.
    """
    if config.init_image is None:
        return config
    folder = resolve(config.init_image)
    values = read_json(folder / CONFIG)
    verify_config(folder)
    if missing := [name for name in ("hidden_size", "num_hidden_layers", "patch_size") if name not in values]:
        raise ConfigError(f"init_image = {config.init_image!r} is no ViT's folder: config.json has no {missing[0]!r}")
    tower = {ours: values[theirs] for ours, theirs in NAMES.items() if theirs in values}
    eps = tower.pop("layer_norm_eps", config.vit_layer_norm_eps)
    ratio = positive(values, "intermediate_size", 3072) / positive(values, "hidden_size", 768)
    tower |= {"tower": "vit", "vit_layer_norm_eps": eps, "vit_mlp_ratio": ratio}
    # Only our own folders say how features are pooled. Pixels have a file of their own.
    own = values.get(SECTION, {}).get("config", {})
    tower |= {"vit_pool": own.get("pool", "cls"), "crop_pct": own.get("crop_pct", config.crop_pct)}
    pixels = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    tower |= {ours: pixels[f"image_{ours}"] for ours in ("mean", "std") if f"image_{ours}" in pixels}
    return from_dict(CLIPConfig, {**to_dict(config), **tower})


def load_image_tower(tower: nn.Module, config: CLIPConfig) -> None:
    """The weights of `config.init_image` into `tower`.

    Raises WeightsMismatch when one is missing or misshapen, WeightsError for a file that is damaged
    or does not match its checksum.
    """
    assert config.init_image is not None
    folder = resolve(config.init_image)
    verify_sums(folder, [WEIGHTS])
    state, _ = KEYMAP.to_ours(load_weights(folder / WEIGHTS))  # without MAE's decoder, a classifier
    own = tower.state_dict()
    wrong = [key for key, tensor in own.items() if key not in state or state[key].shape != tensor.shape]
    if wrong:
        named = ", ".join(wrong[:5])
        raise WeightsMismatch(f"{folder / WEIGHTS} is no plain ViT: {named} missing or of another shape")
    tower.load_state_dict({key: state[key] for key in own})
