"""Pictures of original, masked and reconstructed images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import BadSample, DataError
from ssl_core.patches import patchify
from ssl_mae import MAE
from ssl_mae.config import demo
from ssl_mae.show import GREY, reconstructions, show


class Pictures:
    """`count` noisy pictures, those in `bad` unreadable."""

    def __init__(self, count: int, bad: tuple[int, ...] = (), channels: int = 3, size: tuple[int, int] = (32, 32)):
        self.count, self.bad, self.shape = count, bad, (channels, *size)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> dict:
        if index in self.bad:
            raise BadSample("torn")
        generator = torch.Generator().manual_seed(index)
        return {"image": torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=generator)}


def method(channels: int = 3, **fields) -> MAE:
    torch.manual_seed(0)
    statistics = {"in_channels": channels, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    return MAE(dataclasses.replace(demo(), depth=1, **statistics, **fields)).eval()


def images(b: int = 3, channels: int = 3, h: int = 32, w: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (b, channels, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_triple_is_the_original_the_masked_and_the_reconstructed_image():
    triples = reconstructions(method(), images(h=48, w=32))
    assert triples.shape == (3, 3, 3, 48, 32)
    original, masked, result = triples.unbind(1)
    assert torch.equal(original, images(h=48, w=32) / 255)
    hidden = (patchify(masked, 8) == GREY).all(-1)  # b n
    assert hidden.sum(1).tolist() == [24 - int(24 * 0.4)] * 3
    seen = ~hidden[..., None].expand(-1, -1, 192)
    for picture in (masked, result):
        assert torch.allclose(patchify(picture, 8)[seen], patchify(original, 8)[seen], atol=1e-6)
    assert not torch.allclose(patchify(result, 8)[~seen], patchify(original, 8)[~seen], atol=0.1)
    assert 0 <= triples.min() and triples.max() <= 1


def test_the_masks_of_a_figure_are_fixed_by_its_seed():
    network = method()
    assert torch.equal(reconstructions(network, images()), reconstructions(network, images()))
    assert not torch.equal(reconstructions(network, images(), seed=1)[:, 1], reconstructions(network, images())[:, 1])


TITLES = 15
"""Pixels of the line above a grid that names its columns."""


def test_show_writes_a_picture_and_its_caption(tmp_path):
    with torch.inference_mode():
        captions = show(method(), Pictures(20), tmp_path)
    assert captions == {"reconstructions.png": "original | masked | reconstruction, 60% of the patches removed"}
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.size == (2 * (3 * (96 + 6) + 18), TITLES + 8 * (96 + 6))
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 2)])
def test_few_pictures_are_shown_too(tmp_path, count, rows):
    show(method(), Pictures(count), tmp_path)
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.size[1] == TITLES + rows * (96 + 6)


def test_unreadable_pictures_are_passed_over(tmp_path):
    show(method(), Pictures(6, bad=(0, 2, 5)), tmp_path)
    assert (tmp_path / "reconstructions.png").exists()
    with pytest.raises(DataError, match="none of the .* is readable"):
        show(method(), Pictures(3, bad=(0, 1, 2)), tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels_are_drawn_as_grey_or_as_their_first_three(tmp_path, channels):
    show(method(channels), Pictures(4, channels=channels), tmp_path)
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.mode == "RGB"
        pixels = np.asarray(picture)
    grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    assert grey == (channels < 3)
