"""Both methods keep the promises that every method makes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ssl_beit.config import RECIPES, BEiTConfig, DVAEConfig
from ssl_testing.conformance import Conformance

SIZES = {"image_size": (16, 24), "hidden": 4, "blocks": 1, "decoder_init": 4, "vocab": 12}
SCHEDULES = {"kl_warmup": 0.5, "temperature_decay": 0.5, "ema": 0.9}
TOKENIZER = DVAEConfig(**SIZES, **SCHEDULES, crop_scale=(0.4, 1.0))
FOLDER = tempfile.TemporaryDirectory()  # lives as long as the tests


def trained_tokenizer() -> str:
    """A folder with the tiny tokenizer, which every run of BEiT begins with."""
    import torch

    from ssl_beit import DVAE

    folder = Path(FOLDER.name) / "tokenizer"
    if not folder.exists():
        torch.manual_seed(0)
        DVAE(TOKENIZER).save_pretrained(folder)
    return str(folder)


class TestDVAE(Conformance):
    recipe = RECIPES["dvae"]
    folders = ("12 medium RGBA in 6 classes", "480 small grey in 30 classes")
    config = TOKENIZER


class TestBEiT(Conformance):
    recipe = RECIPES["beit"]
    folders = ("100 large palette in 30 classes", "12 large mixed of one class")
    sizes = {"image_size": (8, 12), "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "drop_path": 0.2}
    tokens = {"vocab": 12, "mask_patches": 3, "mask_block": 1, "tokenizer": trained_tokenizer()}
    tokenizer = {"tokenizer_hidden": 4, "tokenizer_blocks": 1, "tokenizer_init": 4}
    config = BEiTConfig(**sizes, **tokens, **tokenizer, crop_scale=(0.4, 1.0))
    noiseless = {"drop_path": 0.0}
