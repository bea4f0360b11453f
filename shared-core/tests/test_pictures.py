"""The grid of pictures that figures are made of."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ssl_core.pictures import save_grid


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


def test_images_larger_than_the_scale_are_not_enlarged(tmp_path):
    save_grid(torch.rand(1, 3, 3, 200, 120), tmp_path / "grid.png", gap=6)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (3 * 126 + 18, 206)
