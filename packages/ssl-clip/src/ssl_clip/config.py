"""Configuration of CLIP and its presets. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from ssl_core.bounds import Depth, Positive, Scale, Whole, Width
from ssl_core.config import ImageConfig, PosInterp, TrainConfig, check
from ssl_core.method import Recipe

RECIPES = {
    "clip": Recipe(
        name="clip",
        package="ssl_clip",
        config="ssl_clip.config:CLIPConfig",
        method="ssl_clip.clip:CLIP",
        views="ssl_clip.views:build",
        show="ssl_clip.show:show",
        source="ssl_clip.pairs:open_pairs",
        built_in="captioned scenes",
        blank="ssl_clip.views:blank",
        settle="ssl_clip.lit:settle",
        fitted="ssl_clip.config:fitted",
        measure="ssl_clip.measure:measure",
    )
}

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RESNET_STRIDE = 32
"""Pixels of the image per cell of a ResNet's last map."""


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(ImageConfig, TrainConfig):
    """Both towers and the recipe. The defaults are OpenAI's ViT-B/32 (arXiv 2103.00020)."""

    tower: Literal["clip", "resnet", "vit"] = "clip"
    """image tower: CLIP's ViT, CLIP's ResNet, or the plain ViT of our other packages (LiT)"""
    patch_size: int = 32
    dim: Width = 768
    """width of the image tower; channels of a ResNet's stem, 64 in RN50"""
    depth: Depth = 12
    """blocks of the image tower; unused by a ResNet"""
    heads: Width = 12
    """attention heads of the image tower, those of the attention pool in a ResNet"""
    mlp_ratio: Annotated[float, Interval(gt=0, le=1000)] = 4.0
    """hidden width of an MLP over the width, in both of CLIP's transformers"""
    stages: tuple[Depth, Depth, Depth, Depth] = (3, 4, 6, 3)
    """blocks of a ResNet's four stages"""
    vit_pool: Literal["cls", "mean"] = "cls"
    """what a plain ViT gives: its CLS token or the mean of the patches"""
    vit_mlp_ratio: Annotated[float, Interval(gt=0, le=1000)] = 4.0
    """hidden width of a plain ViT's MLP over its width"""
    vit_layer_norm_eps: Positive = 1e-6
    """epsilon of a plain ViT's LayerNorms"""
    text_dim: Width = 512
    """width of the text tower"""
    text_depth: Depth = 12
    """blocks of the text tower"""
    text_heads: Width = 8
    """attention heads of the text tower"""
    vocab_size: Annotated[int, Interval(ge=3, lt=2**24)] = 49408
    """tokens; the last two are start and end of a text, when a tokenizer is trained"""
    context_length: Annotated[int, Interval(ge=3, lt=2**16)] = 77
    """tokens of a text, start and end included"""
    text_pool: Literal["eos", "argmax"] = "eos"
    """the token that stands for a text: the first end token, or that of the largest id (OpenAI)"""
    eos_token_id: Whole = 49407
    """id of the end of a text"""
    embed_dim: Width = 512
    """width of the common space"""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """OpenAI's weights have quick_gelu, most of open_clip's gelu"""
    layer_norm_eps: Positive = 1e-5
    """epsilon of every LayerNorm"""
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    crop_pct: float = 1.0
    pos_interp: PosInterp = "size"
    """how stored positions are resampled to another image size"""

    loss: Literal["clip", "siglip"] = "clip"
    """clip: softmax over the batch, both ways; siglip: a sigmoid a pair, better at small batches"""
    tokenizer: str | None = None
    """tokenizer.json, vocab.json, open_clip's .txt.gz or a folder; else trained on the captions"""
    truncate: bool = False
    """cut captions that are longer than the context; else such a sample counts as unreadable"""
    crop_scale: Scale = (0.9, 1.0)
    """share of the image's area in a random crop"""
    init_image: str | None = None
    """folder of a ViT (ssl-mae, ssl-dino, transformers) that becomes the image tower"""
    lock_image: bool = False
    """leave the image tower as it is and train the text tower on it (LiT, arXiv 2111.07991)"""

    epochs: float = 32
    batch_size: int = 32768
    base_lr: float = 5e-4 * 256 / 32768
    warmup_epochs: float = 0.16
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    """AdamW's epsilon: the paper has 1e-6 for its ViTs, 1e-8 for its ResNets (table 18)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        width = self.image_width
        check(width % self.heads == 0, "heads", self.heads, f"must divide the width {width}")
        check(self.text_dim % self.text_heads == 0, "text_heads", self.text_heads, f"must divide {self.text_dim}")
        token = self.eos_token_id
        check(token < self.vocab_size, "eos_token_id", token, f"must be one of the {self.vocab_size} tokens")
        if self.tower == "resnet":
            check(self.patch_size == RESNET_STRIDE, "patch_size", self.patch_size, f"of a ResNet is {RESNET_STRIDE}")
            check(self.dim % 2 == 0, "dim", self.dim, "of a ResNet must be even")

    @property
    def image_width(self) -> int:
        """Width of what the image tower pools."""
        return 32 * self.dim if self.tower == "resnet" else self.dim


def vit_b32() -> CLIPConfig:
    """OpenAI's ViT-B/32: 63.2 % zero-shot on ImageNet (the paper's table 11). Not run here."""
    return CLIPConfig()


def vit_b16() -> CLIPConfig:
    """OpenAI's ViT-B/16: 68.3 % zero-shot on ImageNet (the paper's table 11). Not run here."""
    return CLIPConfig(patch_size=16)


def vit_l14() -> CLIPConfig:
    """OpenAI's ViT-L/14: 75.3 % zero-shot on ImageNet (the paper's table 11). Not run here."""
    text: Any = {"text_dim": 768, "text_heads": 12}
    return CLIPConfig(patch_size=14, dim=1024, depth=24, heads=16, **text, embed_dim=768)


def rn50() -> CLIPConfig:
    """OpenAI's RN50: 59.6 % zero-shot on ImageNet (the paper's table 11). Not run here."""
    return CLIPConfig(tower="resnet", dim=64, heads=32, embed_dim=1024, betas=(0.9, 0.999), eps=1e-8)


def small() -> CLIPConfig:
    """ViT-S/16 for up to a million pairs on one GPU, with the sigmoid loss.

    The vocabulary of 8,192 is trained on the captions. Not in a paper; a start, not run here.
    """
    towers: Any = {"dim": 384, "heads": 6, "text_dim": 384, "text_depth": 6, "text_heads": 6, "embed_dim": 384}
    text: Any = {"vocab_size": 8192, "eos_token_id": 8191, "context_length": 64}
    run: Any = {"batch_size": 512, "base_lr": 4e-4, "warmup_epochs": 1.5, "weight_decay": 0.1}
    return CLIPConfig(patch_size=16, **towers, activation="gelu", **text, loss="siglip", **run)


def demo() -> CLIPConfig:
    """The built-in captioned scenes at 64 pixels, in minutes on two cores: docs/benchmarks.md."""
    image: Any = {"image_size": 64, "tower": "resnet", "dim": 16, "heads": 8, "stages": (1, 1, 1, 1)}
    text: Any = {"text_dim": 64, "text_depth": 2, "text_heads": 2}
    tokens: Any = {"vocab_size": 640, "eos_token_id": 639, "context_length": 16}
    run: Any = {"epochs": 6, "batch_size": 64, "base_lr": 6e-3, "warmup_epochs": 1, "weight_decay": 0.05, "eps": 1e-8}
    return CLIPConfig(**image, **text, **tokens, embed_dim=128, activation="gelu", **run, precision="fp32")


def fitted(network: str, side: int, samples: int) -> CLIPConfig:
    """A recipe for `samples` pairs of captions and images of `side` pixels.

    The tiny network is a ResNet; small and base are the presets `small` and `vit_b32`. The
    vocabulary is trained on the captions, and long captions are cut.
    """
    if network != "tiny":
        preset = small() if network == "small" else vit_b32()
        base_lr = 4e-4 if network == "small" else preset.base_lr
        return dataclasses.replace(preset, image_size=side, base_lr=base_lr, truncate=True)
    image: Any = {"image_size": side, "tower": "resnet", "dim": 16, "heads": 8, "stages": (1, 1, 1, 1)}
    text: Any = {"text_dim": 128, "text_depth": 3, "text_heads": 4}
    tokens: Any = {"vocab_size": 2048, "eos_token_id": 2047, "context_length": 32, "truncate": True}
    run: Any = {"epochs": 100, "batch_size": 512, "base_lr": 3e-3, "warmup_epochs": 5, "weight_decay": 0.1}
    return CLIPConfig(**image, **text, **tokens, embed_dim=128, activation="gelu", **run)


PRESETS: dict[str, dict[str, Callable[[], CLIPConfig]]] = {
    "clip": {"demo": demo, "small": small, "vit_b32": vit_b32, "vit_b16": vit_b16, "vit_l14": vit_l14, "rn50": rn50}
}
