"""Retrieval against plain Python, and the order of words."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from ssl_clip import CLIP, Tokenizer, retrieval
from ssl_clip.measure import measure, order_of_words
from ssl_clip.pairs import open_pairs


def plain_ranks(scores: list, right: list[set[int]]) -> list[int]:
    ranks = []
    for row, own in zip(scores, right, strict=True):
        best = max(row[j] for j in own)
        ranks.append(1 + sum(j not in own and score >= best for j, score in enumerate(row)))
    return ranks


def test_ranks_equal_plain_python_with_several_right_answers_and_ties():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-2, 3, (n, 3), generator=generator).float() for n in (10, 14))
    pairs = torch.tensor([(i, j) for i in range(10) for j in (i, (i * 3 + 5) % 14)])
    right = [{j for a, j in pairs.tolist() if a == i} for i in range(10)]
    ranks = plain_ranks((image @ text.T).tolist(), right)
    found = retrieval(image, text, pairs, rows=3)["image_to_text"]
    assert found["R@1"] == pytest.approx(sum(rank <= 1 for rank in ranks) / 10)
    assert found["R@5"] == pytest.approx(sum(rank <= 5 for rank in ranks) / 10)
    assert found["mean_rank"] == pytest.approx(sum(ranks) / 10)
    assert found["chance_R@1"] == pytest.approx(2 / 14)
    back = [{i for i, b in pairs.tolist() if b == j} for j in range(14)]
    asked = [j for j in range(14) if back[j]]
    expected = plain_ranks([(text @ image.T)[j].tolist() for j in asked], [back[j] for j in asked])
    assert retrieval(image, text, pairs, rows=3)["text_to_image"]["mean_rank"] == pytest.approx(
        sum(expected) / len(asked)
    )


def test_a_constant_model_finds_nothing():
    same = torch.ones(20, 4)
    found = retrieval(same, same, torch.arange(20)[:, None].expand(-1, 2))
    assert found["image_to_text"]["R@10"] == 0 and found["image_to_text"]["median_rank"] == 20


def test_the_order_of_words_is_measured_on_the_built_in_captions(trainable):
    clip = CLIP(dataclasses.replace(trainable, context_length=40)).eval()
    captions = ["a small dotted circle left of a ringed cross", "a large ringed cross above a ringed cross", "a dog"]
    clip.tokenizer = Tokenizer.trained(captions, 600)
    with torch.inference_mode():
        image = clip.encode_text(captions)  # as images that fit their captions best
        found = order_of_words(clip, image, list(enumerate(captions)))
    assert found == {"objects_swapped": 1.0, "relation_reversed": 1.0}
    assert order_of_words(clip, image, [(0, "a dog"), (1, "two cats")]) == {}


def test_classes_that_the_context_cannot_hold_leave_the_other_figures(model, tmp_path):
    clip = model()
    for number, name in enumerate(("red", "a name " * 12)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (99 * number, 9, 9)).save(tmp_path / name / "1.png")
        (tmp_path / name / "1.txt").write_text("red\n" if number else "green\n")
    result = measure(clip, clip.attach(open_pairs(tmp_path, config=clip.config)))
    assert "zero_shot" not in result and "retrieval" in result
    assert result["summary"][-1].startswith("zero-shot accuracy is not measured: the text ")
