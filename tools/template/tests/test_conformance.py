"""Rotation prediction keeps the promises that every method makes."""

from __future__ import annotations

from ssl_template.config import RECIPES, RotNetConfig
from ssl_testing.conformance import Conformance


class TestRotNet(Conformance):
    recipe = RECIPES["rotation"]
    config = RotNetConfig(image_size=8, patch_size=2, dim=16, depth=1, heads=2)
