"""Pictures of attention, and what a model writes early and late in its training."""

from __future__ import annotations

import re

import torch
from PIL import Image
from tiny_text import RUN, open_windows

from ssl_lm.show import save_attention, save_text, show, token_names


def test_show_draws_attention_and_samples_over_training(run, gpt, tmp_path):
    source = gpt.attach(open_windows(run.parent / "data", config=RUN, split="test"))
    (run / "figures").mkdir(exist_ok=True)
    captions = show(gpt, source, run / "figures")
    assert set(captions) == {"attention.png", "samples.png"}
    text = (run / "figures" / "samples.txt").read_text()
    assert re.findall("--- (.*)", text)[0] == "before training" and re.findall("--- (.*)", text)[-1] == "trained"
    with Image.open(run / "figures" / "attention.png") as picture:
        assert picture.height == 2 * (24 * 11 + 15 + 12), "two blocks of 24 tokens, each under its title"
        assert picture.width > 2 * (24 * 11 + 12), "two heads, and the tokens' names on the left"
    maps = torch.zeros(1, 1, 2, 2)
    maps[0, 0, 1, 0] = 1
    save_attention(maps, tmp_path / "a.png", gap=0)
    with Image.open(tmp_path / "a.png") as picture:
        shown = [picture.getpixel((x, 15 + y)) for x, y in ((9, 9), (9, 250), (250, 250))]
    assert shown == [255, 0, 255]
    save_text("one\n\ttwo\n", tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.size[1] == 64 and picture.getextrema()[0] < 64


def test_tokens_are_named_by_their_text_and_by_their_number_without_a_tokenizer(gpt, monkeypatch):
    ids = gpt.tokenizer.encode("a new\nline", add_special_tokens=False).ids
    names = token_names(gpt, ids)
    assert len(names) == len(ids) and "\n" not in "".join(names), "a line break would spoil the picture"
    assert "".join(names).replace("·", " ") == "a new\\nline"
    monkeypatch.setattr(gpt, "tokenizer", None)
    assert token_names(gpt, ids) == [str(i) for i in ids]


def test_a_text_picture_breaks_long_lines_and_keeps_columns(tmp_path):
    save_text("x" * 100, tmp_path / "one.png")
    save_text("x" * 250, tmp_path / "three.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "three.png") as three:
        assert (three.width, three.height - one.height) == (one.width, 2 * 20), "100 characters a line"
    for letter in "iW":
        save_text(letter * 9 + "|", tmp_path / f"{letter}.png")
    with Image.open(tmp_path / "i.png") as narrow, Image.open(tmp_path / "W.png") as broad:
        last = 12 + 9 * 8, 0, 12 + 10 * 8, 40
        assert narrow.crop(last).tobytes() == broad.crop(last).tobytes(), "the tenth character of both lines"
