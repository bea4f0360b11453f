"""Settings of the denoising autoencoder. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_core.config import ImageConfig, TrainConfig
from ssl_core.method import Recipe

RECIPES = {
    "denoising": Recipe(
        name="denoising",
        package="denoising",
        config="denoising.config:DenoisingConfig",
        method="denoising.denoising:Denoising",
        views="denoising.views:Crop",
        show="denoising.show:show",
    )
}


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(ImageConfig, TrainConfig):
    """Network and recipe."""

    image_size: int | tuple[int, int] = 32
    patch_size: int = 4
    """pixels per feature: the encoder halves the image twice"""
    width: int = 32
    """channels of the encoder's output"""
    noise: float = 0.5
    """standard deviation of the noise, on normalised pixels"""


PRESETS = {"denoising": {"demo": DenoisingConfig}}
