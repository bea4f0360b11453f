"""Pictures of what is asked and answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_core.method import load
from ssl_pretext.config import RECIPES
from ssl_pretext.relative_patch import neighbours
from ssl_pretext.show import laid_out, show_colorization, show_jigsaw, show_relative_patch, show_rotation
from ssl_train.data.images import ImageArray
from ssl_train.data.pictures import rgb


def method(recipe: Any, channels: int = 3) -> Any:
    torch.manual_seed(0)
    config = recipe.presets["demo"]()
    if channels != 3:
        config = replace(config, in_channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    return load(recipe.method)(replace(config, width=2)).eval()


def source(number: int = 20, channels: int = 3) -> ImageArray:
    return ImageArray(
        np.random.default_rng(0).integers(0, 256, (number, 32, 32, channels), dtype=np.uint8), channels, "noise"
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("number", [1, 20])
def test_every_task_writes_a_picture_and_its_caption(recipe, number, tmp_path):
    with torch.inference_mode():
        captions = load(recipe.show)(method(recipe), source(number), tmp_path)
    [(name, caption)] = captions.items()
    assert name == f"{recipe.name}.png" and " | " in caption
    with Image.open(tmp_path / name) as picture:
        assert picture.mode == "RGB" and np.asarray(picture).std() > 10


@pytest.mark.parametrize("name", ["rotation", "jigsaw", "relative-patch"])
def test_grey_pictures_are_shown_too(name, tmp_path, monkeypatch):
    recipe = RECIPES[name]
    grids = []
    monkeypatch.setattr("ssl_pretext.show.save_grid", lambda pictures, path, **_: grids.append(rgb(pictures)))
    with torch.inference_mode():
        load(recipe.show)(method(recipe, 1), source(channels=1), tmp_path)
    assert torch.equal(grids[0][:, :, 0], grids[0][:, :, 1])


@pytest.mark.parametrize("name", ["rotation", "jigsaw", "relative-patch"])
def test_every_answer_is_marked_as_right_or_wrong(name, tmp_path, monkeypatch):
    recipe, marks = RECIPES[name], {}
    monkeypatch.setattr(
        "ssl_pretext.show.save_grid", lambda pictures, path, **given: marks.update(given, n=len(pictures))
    )
    with torch.inference_mode():
        load(recipe.show)(method(recipe), source(), tmp_path)
    assert len(marks["right"]) == len(marks["labels"]) == marks["n"] == 16
    assert [label.startswith("right") for label in marks["labels"]] == list(marks["right"])
    assert not all(marks["right"]), "an untrained network"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is handed to `save_grid`."""
    grids: list[Tensor] = []
    monkeypatch.setattr("ssl_pretext.show.save_grid", lambda pictures, path, **_: grids.append(pictures))
    return grids


def test_a_network_that_is_right_turns_every_picture_back(shown, tmp_path, monkeypatch):
    network = method(RECIPES["rotation"])
    asked = iter([F.one_hot(torch.arange(4).repeat_interleave(20), 4).float()])
    monkeypatch.setattr(network, "logits", lambda images: next(asked))
    captions = show_rotation(network, source(), tmp_path)
    as_shown, back, original = shown[0].unbind(1)
    assert torch.equal(back, original)
    assert [bool(torch.equal(a, b)) for a, b in zip(as_shown, original, strict=True)] == [True, False, False, False] * 4
    assert "100% of the turns recognised" in captions["rotation.png"]


def test_a_network_that_is_right_solves_every_puzzle(shown, tmp_path, monkeypatch):
    network = method(RECIPES["jigsaw"])
    truth = np.random.default_rng(0).integers(network.config.permutations, size=20)
    answers = F.one_hot(torch.from_numpy(truth), network.config.permutations).float()
    monkeypatch.setattr(network, "logits", lambda tiles: answers)
    captions = show_jigsaw(network, source(), tmp_path)
    as_shown, solved, original = shown[0].unbind(1)
    assert torch.equal(solved, original) and not torch.equal(as_shown, original)
    assert "100% of 504 orders" in captions["jigsaw.png"]


def test_a_network_that_is_right_puts_every_neighbour_in_its_place(shown, tmp_path, monkeypatch):
    network = method(RECIPES["relative-patch"])
    right = F.one_hot(neighbours("centre")[:, 2], 8).float().expand(20, -1, -1)
    monkeypatch.setattr(network, "pair_logits", lambda tiles, pairs: right)
    captions = show_relative_patch(network, source(), tmp_path)
    placed, true = shown[0].unbind(1)
    assert torch.equal(placed, true)
    assert "100% recognised" in captions["relative-patch.png"]


def test_the_grey_picture_has_no_colour_and_the_true_one_is_the_picture(shown, tmp_path):
    show_colorization(method(RECIPES["colorization"]), source(), tmp_path)
    grey, predicted, true = shown[0].unbind(1)
    assert (grey[:, 0] - grey[:, 1]).abs().max() < 1e-3
    assert (predicted[:, 0] - predicted[:, 1]).abs().max() > 0.01
    assert torch.equal((true * 255).round() / 255, true)


def test_tiles_are_laid_out_row_by_row_with_white_between_them():
    tiles = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(-1, -1, 3, 2, 2) / 9
    sheet = laid_out(tiles)
    assert sheet.shape == (1, 3, 12, 12)
    assert torch.allclose(sheet[0, 0, 1::4, 1::4], torch.arange(9.0).view(3, 3) / 9)
    assert (sheet[:, :, 0] == 1).all() and (sheet[:, :, :, 3:5] == 1).all()
