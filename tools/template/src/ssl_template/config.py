"""Configuration of rotation prediction and its presets. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ssl_core.config import VIT_SIZES, BackboneConfig, TrainConfig, check, patch_for
from ssl_core.method import Recipe

RECIPES = {
    "rotation": Recipe(
        name="rotation",
        package="ssl_template",
        config="ssl_template.config:RotNetConfig",
        method="ssl_template.rotation:RotNet",
        views="ssl_template.views:build",
        show="ssl_template.show:show",
        fitted="ssl_template.config:fitted",
    )
}


@dataclass(frozen=True, kw_only=True)
class RotNetConfig(BackboneConfig, TrainConfig):
    """Encoder and recipe. The paper has a network of its own; here it is any of our encoders."""

    pool: Literal["cls", "mean"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        square = self.size[0] == self.size[1]
        check(square, "image_size", self.image_size, "a quarter turn needs a square")


def demo() -> RotNetConfig:
    """The built-in scenes at 32 pixels, seconds an epoch on two CPU cores. No figure measured."""
    network = {"image_size": 32, "patch_size": 8, "dim": 64, "depth": 2, "heads": 2, "crop_pct": 1.0}
    run = {"epochs": 10, "batch_size": 64, "base_lr": 4e-3, "warmup_epochs": 1, "precision": "fp32"}
    return RotNetConfig(**network, **run)


def fitted(network: str, side: int, samples: int) -> RotNetConfig:
    """A recipe for `samples` images of `side` pixels, by a ViT that is tiny, small or base."""
    images: Any = {"image_size": side, "patch_size": patch_for(side)}
    vit: Any = VIT_SIZES[network]
    return RotNetConfig(**images, **vit, epochs=300, batch_size=512, warmup_epochs=10)


PRESETS = {"rotation": {"demo": demo}}
