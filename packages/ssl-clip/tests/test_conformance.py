"""Rotation prediction keeps the promises that every method makes."""

from __future__ import annotations

from ssl_core.testing.conformance import Conformance
from ssl_clip.config import RECIPE, RotNetConfig


class TestRotNet(Conformance):
    recipe = RECIPE
    config = RotNetConfig(image_size=8, patch_size=2, dim=16, depth=1, heads=2)
