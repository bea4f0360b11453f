"""SimCLR at the paper's temperature in half precision: the loss scale finds its size."""

from __future__ import annotations

import json
import math

from ssl_contrastive.config import RECIPES, SimCLRConfig
from ssl_testing.trial import Trial


def test_simclr_finds_its_loss_scale_and_keeps_it(tmp_path):
    encoder = {"backbone": "resnet18", "width": 8, "small_stem": True, "image_size": 16, "crop_pct": 1.0}
    run = {"batch_size": 16, "epochs": 0.02, "warmup_epochs": 0.005, "precision": "fp16"}
    config = SimCLRConfig(**encoder, **run, crop_scale=(0.4, 1.0), temperature=0.1)
    Trial(RECIPES["simclr"], config).here(tmp_path / "run", checkpoint_minutes=60.0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [not math.isfinite(line["grad_norm"]) for line in lines]
    assert sum(skipped) >= 3, "the first scale would do: the test shows nothing"
    assert skipped == sorted(skipped, reverse=True) and not skipped[-1]
