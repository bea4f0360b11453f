"""The methods that faults are tried on: tiny, for 60 steps on 64 images."""

from __future__ import annotations

import dataclasses

from ssl_mae.config import RECIPES, MAEConfig
from ssl_testing import tiny
from ssl_testing.trial import Trial

SETTINGS = {"batch_size": 8, "epochs": 7.5, "warmup_epochs": 0.5, "base_lr": 0.032, "precision": "fp32"}
PICTURES = "ssl_testing.tiny:open_pictures"

ENCODER = {"image_size": 8, "patch_size": 2, "dim": 16, "depth": 1, "heads": 2}
DECODER = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}

METHODS = {
    "tiny": Trial(tiny.RECIPES["tiny"], tiny.TinyConfig(**SETTINGS)),
    "mae": Trial(dataclasses.replace(RECIPES["mae"], source=PICTURES), MAEConfig(**ENCODER, **DECODER, **SETTINGS)),
}
