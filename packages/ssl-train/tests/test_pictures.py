"""The grid of pictures that figures are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import DataError
from ssl_testing.tiny import Pictures, TinyConfig
from ssl_train.data.pictures import apart, font, rgb, sample_images, save_grid, wrapped
from ssl_train.data.readable import readable


def test_the_grid_holds_every_pixel_where_it_belongs(tmp_path):
    triples = torch.rand(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_grid(triples, tmp_path / "grid.png", columns=2, scale_to=16, gap=4)
    with Image.open(tmp_path / "grid.png") as picture:
        sheet = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    group = 2 * (16 + 4) + 12
    assert sheet.shape == (3, 2 * (16 + 4), 2 * group)
    for index in range(4):
        for part in range(2):
            top, left = index // 2 * 20, index % 2 * group + part * 20
            shown = sheet[:, top : top + 16, left : left + 16]
            expected = (triples[index, part] * 255).round().to(torch.uint8)
            assert torch.equal(shown[:, ::2, ::2], expected)
            assert torch.equal(shown[:, 1::2, 1::2], expected), "enlarged without blur"
    assert (sheet[:, :, 40:group] == 255).all()


def opened(path):
    with Image.open(path) as picture:
        return np.array(picture)


def test_titles_and_labels_make_room_and_leave_the_pictures_whole(tmp_path):
    pictures = torch.rand(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_grid(pictures, tmp_path / "plain.png", columns=1)
    said = {
        "titles": ("first", "second"),
        "labels": ("a", "b", "a text that is too long for one line above its pictures"),
    }
    save_grid(pictures, tmp_path / "said.png", columns=1, **said)
    plain, named = opened(tmp_path / "plain.png"), opened(tmp_path / "said.png")
    top, over = 15, 30
    assert named.shape == (len(plain) + top + 3 * over, plain.shape[1], 3)
    for row in range(3):
        start = top + row * (over + 102) + over
        assert (named[start : start + 96] == plain[row * 102 : row * 102 + 96]).all()
        assert (named[start - over : start] < 255).any(), "its label"


def test_a_frame_tells_right_from_wrong(tmp_path):
    save_grid(torch.ones(2, 1, 3, 8, 8), tmp_path / "grid.png", columns=1, right=[True, False])
    sheet = opened(tmp_path / "grid.png").astype(int)
    assert sheet[0, 0, 1] > sheet[0, 0, 0] and sheet[102, 0, 0] > sheet[102, 0, 1], "green, red"


def test_a_last_row_that_is_not_full_is_shown(tmp_path):
    save_grid(torch.zeros(3, 1, 3, 8, 8), tmp_path / "grid.png", columns=2)
    sheet = opened(tmp_path / "grid.png")
    assert (sheet[110, 10] == 0).all() and (sheet[110, 130] == 255).all()


@pytest.mark.parametrize("text", ["", "word", "some words in a row", "x" * 80, "a " + "y" * 60 + " b"])
def test_wrapped_text_fits_and_loses_nothing(text):
    lines = wrapped(text, 90).split("\n")
    assert all(font().getlength(line) <= 90 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_places_in_cells_do_not_hide_each_other_and_stay_near():
    places = np.random.default_rng(0).normal(size=(60, 2))
    cells = apart(places, 12, 9)
    assert len({tuple(cell) for cell in cells}) == 60 and (cells >= 0).all() and (cells < (12, 9)).all()
    assert np.corrcoef(places[:, 0], cells[:, 0])[0, 1] > 0.9
    same = apart(np.zeros((4, 2)), 2, 2)
    assert sorted(map(tuple, same.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(ValueError, match="5 places do not fit into 2 x 2"):
        apart(np.zeros((5, 2)), 2, 2)


def test_images_larger_than_the_scale_are_not_enlarged(tmp_path):
    save_grid(torch.rand(1, 3, 3, 200, 120), tmp_path / "grid.png", gap=6)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (3 * 126 + 18, 206)


def test_unreadable_samples_are_passed_over_and_their_places_go_to_the_next():
    source = Pictures(10)
    order = [index for index, _ in readable(source, 10)]
    assert sorted(order) == list(range(10)) and order != list(range(10))
    source.bad = {order[0], order[3]}
    found = list(readable(source, 4))
    assert [index for index, _ in found] == [order[i] for i in (1, 2, 4, 5)]
    assert all(torch.equal(sample["image"], source.load(index)["image"]) for index, sample in found)
    assert len(list(readable(source, 100))) == 8
    assert sample_images(source, TinyConfig(), 100).shape == (8, 3, 8, 8)


def test_a_source_without_a_readable_sample_is_an_error():
    source = Pictures(5)
    source.bad = set(range(5))
    with pytest.raises(DataError, match="none of the .* is readable"):
        list(readable(source, 3))
    with pytest.raises(DataError, match="none of the .* is readable"):
        sample_images(source, TinyConfig(), 3)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
@pytest.mark.parametrize("batch", [(), (2,), (2, 4)])
def test_any_bands_are_shown_as_three(batch, channels, shown):
    pictures = torch.rand(*batch, channels, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rgb(pictures), pictures[..., shown, :, :])
