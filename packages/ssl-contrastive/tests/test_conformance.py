"""The conformance suite for the four methods.

MoCo has a ResNet here, because its batch norm in parts is state too. The others have a ViT, whose
steps take a fraction of the time; test_step.py, test_ranks.py and test_weights.py try them on
ResNets.
"""

from __future__ import annotations

from contextlib import suppress

from ssl_contrastive.config import RECIPES, BYOLConfig, MoCoConfig, SimCLRConfig, SimSiamConfig
from ssl_testing.conformance import Conformance

with suppress(ImportError):
    import sklearn.manifold  # noqa: F401 - for the figures; imported once here, not in every child

SMALL = {"image_size": 8, "crop_pct": 1.0, "crop_scale": (0.4, 1.0)}
SMALL |= {"batch_size": 8, "epochs": 2.5, "warmup_epochs": 0.25}
VIT = SMALL | {"backbone": "vit", "patch_size": 4, "dim": 16, "depth": 1, "heads": 2}
RESNET = SMALL | {"backbone": "resnet18", "width": 4, "small_stem": True}


class TestSimCLR(Conformance):
    folders = ("480 small mixed",)
    recipe = RECIPES["simclr"]
    config = SimCLRConfig(**VIT, projection=8, optimizer="adamw")


class TestMoCo(Conformance):
    folders = ("12 large grey",)
    recipe = RECIPES["moco"]
    config = MoCoConfig(**RESNET, projection=8, queue=21, ema=0.9, bn_splits=2)
    exports = ()


class TestBYOL(Conformance):
    folders = ("12 large mixed of one class",)
    recipe = RECIPES["byol"]
    config = BYOLConfig(**VIT, hidden=16, projection=8, ema=0.9)


class TestSimSiam(Conformance):
    folders = ("100 small RGBA",)
    recipe = RECIPES["simsiam"]
    config = SimSiamConfig(**VIT, projection=8, predictor_hidden=4)
