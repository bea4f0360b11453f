"""The run of the demo on the captioned scenes, measured on combinations of objects that it never saw."""

from __future__ import annotations

import pytest
import torch

from ssl_clip import CLIP, train
from ssl_clip.config import demo
from ssl_clip.measure import measure
from ssl_clip.pairs import open_pairs
from ssl_train.options import RunOptions


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_held_out_combinations_are_found_far_above_chance(tmp_path):
    config = demo()
    trained = train(config, None, tmp_path / "run", options=RunOptions(device="cpu", workers=0, log_every=50))
    torch.manual_seed(0)
    fresh = CLIP(config)
    fresh.tokenizer = trained.tokenizer
    test = open_pairs(None, config=config, split="test")
    ours, before = (measure(clip, clip.attach(test)) for clip in (trained, fresh))
    print((tmp_path / "run" / "metrics.jsonl").read_text(), *ours["summary"], *before["summary"], sep="\n")
    assert ours["zero_shot"]["top1"] > 0.9 > 0.15 > before["zero_shot"]["top1"]
    for way in ours["retrieval"].values():
        assert way["R@1"] > 0.5
    assert min(ours["order"].values()) > 0.95
