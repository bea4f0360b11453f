"""LiT: Zero-Shot Transfer with Locked-image text Tuning (Zhai et al. 2021, arXiv 2111.07991).

The image tower is a ViT that was pretrained without captions, here by ssl-mae, ssl-dino and the like or by anyone who
publishes a ViT in transformers' layout; a text tower learns to speak of what it sees. Locked, the image tower keeps its
weights (the paper's "Lu"); unlocked, it starts from them ("Uu").
"""

from __future__ import annotations

from typing import Any

from ssl_core.hub.backbone import positive
from torch import Tensor, nn

from ssl_clip.config import CLIPConfig
from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_core.encoder import init_linear
from ssl_core.hub.keymap import VIT, VIT_IN_MEMORY, VIT_TIMM, KeyMap, prefixed
from ssl_core.hub.layout import CONFIG, PREPROCESSOR, WEIGHTS, WeightsMismatch, read_json, verify_config
from ssl_core.hub.remote import resolve
from ssl_core.hub.weights_file import load_weights, verify_sums
from ssl_core.vit import ViT

KEYMAP = KeyMap(
    rows=VIT,
    also=(*VIT_IN_MEMORY, *VIT_TIMM, *prefixed((*VIT, *VIT_IN_MEMORY), theirs="vit.")),
)
NAMES = {
    "dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "image_size": "image_size",
    "patch_size": "patch_size", "in_channels": "num_channels", "vit_layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
"""Our fields of a plain ViT and transformers' names for them."""


class PlainTower(ViT):
    """The ViT of our other packages: images (b, c, h, w) -> CLS token or mean of the patches, normalised, (b, d)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(
            image_size=config.size, patch_size=config.patch_size, in_channels=config.in_channels, dim=config.dim,
            depth=config.depth, heads=config.heads, mlp_ratio=config.vit_mlp_ratio,
            layer_norm_eps=config.vit_layer_norm_eps, pos_interp=config.pos_interp,
        )  # fmt: skip
        self.pool = config.vit_pool
        self.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        tokens = self.norm(self.tokens(images))
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1)


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
    known = {ours: values[theirs] for ours, theirs in NAMES.items() if theirs in values}
    hidden, width = positive(values, "intermediate_size", 3072), positive(values, "hidden_size", 768)
    own = values.get("ssl", {}).get("config", {})
    preprocessor = folder / PREPROCESSOR
    pixels = read_json(preprocessor) if preprocessor.is_file() else {}
    known |= {ours: pixels[f"image_{ours}"] for ours in ("mean", "std") if f"image_{ours}" in pixels}
    known |= {"crop_pct": own.get("crop_pct", config.crop_pct), "vit_pool": own.get("pool", "cls")}
    return from_dict(CLIPConfig, {**to_dict(config), **known, "tower": "vit", "vit_mlp_ratio": hidden / width})


def load_image_tower(tower: nn.Module, config: CLIPConfig) -> None:
    """The weights of `config.init_image` into `tower`.

    Raises WeightsMismatch when one is missing or misshapen, WeightsError for a file that is damaged or not what its
    checksum says.
    """
    assert config.init_image is not None
    folder = resolve(config.init_image)
    file = folder / WEIGHTS
    verify_sums(folder, [WEIGHTS])
    state, _ = KEYMAP.to_ours(load_weights(file))
    own = tower.state_dict()
    wrong = [key for key, tensor in own.items() if key not in state or state[key].shape != tensor.shape]
    if wrong:
        raise WeightsMismatch(f"{file} is no plain ViT: {', '.join(wrong[:5])} missing or of another shape")
    tower.load_state_dict({key: state[key] for key in own})
