"""Pictures of attention, and what a model writes early and late in its training."""

from __future__ import annotations

import re

import torch
from PIL import Image
from tiny_text import RUN, open_windows

from ssl_lm.show import save_attention, save_text, show


def test_show_draws_attention_and_samples_over_training(run, gpt, tmp_path):
    source = gpt.attach(open_windows(run.parent / "data", config=RUN, split="test"))
    (run / "figures").mkdir(exist_ok=True)
    captions = show(gpt, source, run / "figures")
    assert set(captions) == {"attention.png", "samples.png"}
    text = (run / "figures" / "samples.txt").read_text()
    assert re.findall("--- (.*)", text)[0] == "before training" and re.findall("--- (.*)", text)[-1] == "trained"
    with Image.open(run / "figures" / "attention.png") as picture:
        assert picture.size == (2 * (24 * 8 + 4), 2 * (24 * 8 + 4))
    maps = torch.zeros(1, 1, 2, 2)
    maps[0, 0, 1, 0] = 1
    save_attention(maps, tmp_path / "a.png", gap=0)
    with Image.open(tmp_path / "a.png") as picture:
        assert [picture.getpixel(place) for place in ((0, 0), (0, 191), (191, 191))] == [255, 0, 255]
    save_text("one\n\ttwo\n", tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.size[1] == 64 and picture.getextrema()[0] < 64
