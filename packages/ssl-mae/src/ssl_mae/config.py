"""Configuration of MAE and its presets. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval

from ssl_core.bounds import Depth, Scale, Width
from ssl_core.config import VIT_SIZES, TrainConfig, ViTConfig, check, patch_for
from ssl_core.method import Recipe

RECIPES = {
    "mae": Recipe(
        name="mae",
        package="ssl_mae",
        config="ssl_mae.config:MAEConfig",
        method="ssl_mae.mae:MAE",
        views="ssl_mae.views:build",
        show="ssl_mae.show:show",
        fitted="ssl_mae.config:fitted",
    )
}


@dataclass(frozen=True, kw_only=True)
class MAEConfig(ViTConfig, TrainConfig):
    """Encoder, decoder, masking and recipe. The defaults are the paper's ViT-B/16 on ImageNet
    (arXiv 2111.06377)."""

    dim: int = 768
    heads: int = 12
    decoder_dim: Width = 512
    """decoder width"""
    decoder_depth: Depth = 8
    """decoder blocks"""
    decoder_heads: Width = 16
    """decoder attention heads"""
    mask_ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.75
    """share of patches that the encoder does not see"""
    norm_pix_loss: bool = True
    """predict pixels standardised per patch, the paper's better variant"""

    crop_scale: Scale = (0.2, 1.0)
    """share of the image's area in a random crop"""
    flip: bool = True
    """mirror at random"""
    turn: bool = False
    """turn and mirror a view in all ways that leave its shape, for pictures from above"""

    epochs: float = 800
    batch_size: int = 4096
    base_lr: float = 1.5e-4
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "decoder_dim"):
            width = getattr(self, name)
            check(width % 4 == 0, name, width, "sin-cos positions need a multiple of 4")
        divides = self.decoder_dim % self.decoder_heads == 0
        check(divides, "decoder_heads", self.decoder_heads, f"must divide the decoder's width {self.decoder_dim}")
        seen = f"of {self.patches} patches {self.kept} would be seen: at least one must be, and one removed"
        check(1 <= self.kept < self.patches, "mask_ratio", self.mask_ratio, seen)

    @property
    def kept(self) -> int:
        """Patches that the encoder sees: int(n · (1 - ratio)), rounding of floats included, as the
        authors' code."""
        return int(self.patches * (1 - self.mask_ratio))


def vit_base() -> MAEConfig:
    """ViT-B/16, the paper's recipe: 800 epochs of ImageNet at batch 4096.

    Fine-tuned 83.66 % top-1, linear probe 67.8 % at 1600 epochs (the authors' README).
    Not run here.
    """
    return MAEConfig()


def vit_large() -> MAEConfig:
    """ViT-L/16, the paper's main model: fine-tuned 85.95 %, linear probe 76.0 % (the authors'
    README).

    800 epochs take about 42 hours on 64 V100 (the authors' README). Not run here.
    """
    return MAEConfig(dim=1024, depth=24, heads=16)


def vit_huge() -> MAEConfig:
    """ViT-H/14: fine-tuned 86.93 %, linear probe 77.2 % (the authors' README). Not run here."""
    return MAEConfig(dim=1280, depth=32, heads=16, patch_size=14)


def vit_small() -> MAEConfig:
    """ViT-S/16 with a decoder of 256 x 4: not in the paper; a start for one GPU at batch 1024.
    Not run here."""
    decoder: dict[str, Any] = {"decoder_dim": 256, "decoder_depth": 4, "decoder_heads": 8}
    return MAEConfig(dim=384, heads=6, **decoder, epochs=400, batch_size=1024, warmup_epochs=20)


def vit_tiny() -> MAEConfig:
    """ViT-Ti/16 with a decoder of 192 x 4: not in the paper; a start for small data at batch 512.
    Not run here."""
    decoder: dict[str, Any] = {"decoder_dim": 192, "decoder_depth": 4, "decoder_heads": 3}
    return MAEConfig(dim=192, heads=3, **decoder, epochs=400, batch_size=512, warmup_epochs=20)


def demo() -> MAEConfig:
    """The built-in scenes at 32 pixels in minutes on two CPU cores; the figures stand in
    docs/benchmarks.md."""
    images: Any = {"image_size": 32, "patch_size": 8, "crop_scale": (1.0, 1.0), "crop_pct": 1.0}
    encoder: Any = {"dim": 128, "depth": 4, "heads": 4, "pool": "mean"}
    decoder: dict[str, Any] = {"decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 4}
    run: Any = {"epochs": 36, "batch_size": 64, "base_lr": 0.012, "warmup_epochs": 2, "precision": "fp32"}
    return MAEConfig(**images, **encoder, **decoder, **run, mask_ratio=0.6)


def fitted(network: str, side: int, samples: int) -> MAEConfig:
    """A recipe for `samples` images of `side` pixels, by a network that is tiny, small or base.

    Small grids leave a few patches more to see, as the demo does.
    """
    decoder: dict[str, Any] = {
        "tiny": {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3},
        "small": {"decoder_dim": 256, "decoder_depth": 4, "decoder_heads": 8},
        "base": {},
    }[network]
    base_lr = {"tiny": 2e-3, "small": 1e-3, "base": 6e-4}[network]
    images: Any = {"image_size": side, "patch_size": patch_for(side), "mask_ratio": 0.75 if side >= 96 else 0.6}
    run: Any = {"epochs": 800, "batch_size": 4096, "base_lr": base_lr, "pool": "mean"}
    return MAEConfig(**images, **VIT_SIZES[network], **decoder, **run)


PRESETS: dict[str, dict[str, Callable[[], MAEConfig]]] = {
    "mae": {
        "demo": demo,
        "vit_tiny": vit_tiny,
        "vit_small": vit_small,
        "vit_base": vit_base,
        "vit_large": vit_large,
        "vit_huge": vit_huge,
    }
}
