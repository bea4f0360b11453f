"""The figures: pairs of views, nearest neighbours, and the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_contrastive import SimCLR, SimCLRConfig
from ssl_contrastive import show as figures
from ssl_core.errors import DataError
from ssl_testing.tiny import Pictures

SMALL: dict[str, Any] = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 8}


def test_neighbours_are_the_nearest_by_cosine_without_the_query():
    angles = torch.tensor([0.0, 0.1, 0.25, 2.0, 0.02])
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1, 9, 3, 5, 0.1])[:, None]
    assert figures.neighbours(features, 2, 3).tolist() == [[0, 4, 1, 2], [1, 4, 0, 2]]


@pytest.mark.parametrize("sklearn", [True, False])
def test_a_map_fills_the_unit_square_and_names_its_projection(sklearn, monkeypatch):
    if sklearn:
        pytest.importorskip("sklearn")
    else:
        monkeypatch.setattr(figures, "find_spec", lambda name: None)
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    places, how = figures.flat(features)
    assert places.shape == (20, 2) and places.min() == 0 and places.max() == pytest.approx(1)
    components = "the first two principal components"
    hint = ' (t-SNE with `pip install "ssl-contrastive[viz]"`)'
    assert how == ("t-SNE" if sklearn else components + hint)
    assert figures.flat(features[:10])[1] == (components if sklearn else components + hint)


def test_thumbnails_are_drawn_at_their_places():
    images = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.5)])
    sheet = np.asarray(figures.draw_map(images, np.array([[0.0, 0.0], [1.0, 1.0]]), side=100, thumbnail=10))
    assert (sheet[:10, :10] == 0).all() and (sheet[-10:, -10:] == 128).all() and (sheet[20:80] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_all_three_figures_are_drawn_for_any_number_of_channels(channels, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    jitter = (0.4, 0.4, 0.4, 0.1) if channels == 3 else (0.4, 0.4, 0.0, 0.0)
    pixels: dict[str, Any] = {"in_channels": channels, "mean": (0.5,) * channels, "std": (0.2,) * channels}
    config = SimCLRConfig(**SMALL, **pixels, jitter=jitter, grayscale_p=0.0)
    source = Pictures(24, size=(10, 10), channels=channels)
    with torch.inference_mode():
        captions = figures.show(SimCLR(config).eval(), source, tmp_path)
    assert set(captions) == {"views.png", "neighbours.png", "map.png"}
    for name in captions:
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 50


def test_one_image_has_no_neighbours(tmp_path):
    network = SimCLR(SimCLRConfig(**SMALL)).eval()
    with pytest.raises(DataError, match="need two readable images or more"):
        figures.show(network, Pictures(1), tmp_path)


def test_a_source_without_a_readable_image_is_an_error():
    source = Pictures(4)
    source.bad = set(range(4))
    network = SimCLR(SimCLRConfig(**SMALL))
    with pytest.raises(DataError, match="none of the .* is readable"):
        figures.view_pairs(network, source)
