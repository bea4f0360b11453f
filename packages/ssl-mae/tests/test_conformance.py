"""MAE keeps the promises that every method makes."""

from __future__ import annotations

from ssl_mae.config import RECIPES, MAEConfig
from ssl_testing.conformance import Conformance


class TestMAE(Conformance):
    recipe = RECIPES["mae"]
    folders = (
        "480 large RGBA of one class",
        "480 small 16-bit in 30 classes",
        "12 small palette of one class",
        "100 medium 16-bit of one class",
    )
    config = MAEConfig(
        image_size=8,
        patch_size=2,
        dim=16,
        depth=1,
        heads=2,
        decoder_dim=8,
        decoder_depth=1,
        decoder_heads=2,
        crop_scale=(0.4, 1.0),
    )
