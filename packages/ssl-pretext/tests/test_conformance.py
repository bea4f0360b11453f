"""The four tasks keep the promises that every method makes, on a ViT or on a ResNet."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_pretext.ab_bins import ab_bins
from ssl_pretext.config import RECIPES, ColorizationConfig, JigsawConfig, RelativePatchConfig, RotationConfig
from ssl_testing.conformance import Conformance
from ssl_testing.contract import Contract

VIT: dict[str, Any] = {"backbone": "vit", "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "pool": "mean"}
RESNET: dict[str, Any] = {"backbone": "resnet18", "width": 2, "small_stem": True}
TILES: dict[str, Any] = {"puzzle_size": 15, "tile_size": 4, "embedding": 6, "hidden": 8, "grayscale": 0.5}


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Find the bins once. Otherwise each forked child would do it again."""
    ab_bins(TestColorization.config.bin_size)


class TestRotation(Conformance):
    folders = ("12 small palette of one class",)
    recipe = RECIPES["rotation"]
    config = RotationConfig(**VIT, image_size=8)


class TestJigsaw(Conformance):
    folders = ("12 large mixed of one class",)
    recipe = RECIPES["jigsaw"]
    config = JigsawConfig(**VIT, **TILES, image_size=8, permutations=9, orders_per_image=2)
    noiseless = {"dropout": 0.0}


class TestColorization(Conformance):
    folders = ("100 medium mixed in 30 classes",)
    recipe = RECIPES["colorization"]
    config = ColorizationConfig(**{**VIT, "patch_size": 8}, image_size=16, hidden=4, bin_size=20.0)


class TestRelativePatch(Conformance):
    folders = ("12 large 16-bit",)
    recipe = RECIPES["relative-patch"]
    config = RelativePatchConfig(**VIT, **TILES, image_size=8, pairs="all", color_drop=True)


class TestRotationOfAResNet(Contract):
    """A ResNet could break these: its statistics are buffers, span processes, do not accumulate."""

    recipe = RECIPES["rotation"]
    config = RotationConfig(**RESNET, image_size=8)
