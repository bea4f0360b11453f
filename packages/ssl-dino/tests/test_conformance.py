"""What every method promises, for DINO with a ViT."""

from __future__ import annotations

from typing import Any

from ssl_dino.config import RECIPES, DINOConfig
from ssl_testing.conformance import Conformance

VIT: Any = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "drop_path": 0.1}
HEAD: Any = {"prototypes": 12, "head_hidden": 16, "bottleneck": 8, "freeze_last_layer": 1}
CROPS: Any = {"crop_pct": 1.0, "local_crops": 2, "local_size": 4}
TEACHER: Any = {"teacher_temp": 0.07, "warmup_teacher_temp_epochs": 2, "teacher_momentum": 0.9}


class TestDINO(Conformance):
    recipe = RECIPES["dino"]
    folders = ("480 medium palette", "100 medium grey of one class", "12 large grey", "100 small RGBA")
    config = DINOConfig(**VIT, **HEAD, **CROPS, **TEACHER, epochs=2.5, warmup_epochs=0.25, batch_size=8)
    noiseless = {"drop_path": 0.0}
