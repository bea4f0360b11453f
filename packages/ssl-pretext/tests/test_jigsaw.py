"""Jigsaw puzzles: tiles and orders, the loss against plain Python, several orders of one pass."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.config import ConfigError
from ssl_core.encoder import build_encoder
from ssl_pretext import Jigsaw, JigsawConfig, jigsaw_loss, permutation_set
from ssl_pretext.jigsaw import shuffle, unshuffle
from ssl_pretext.tiles import standardize_tiles
from ssl_pretext.views import JigsawView, TilesView, cut_tiles

RESNET: Any = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 16}
TILES: Any = {"puzzle_size": 27, "tile_size": 7, "embedding": 8, "hidden": 16}
TINY = JigsawConfig(**RESNET, **TILES, permutations=72, dropout=0.0)


def method(**fields) -> Jigsaw:
    torch.manual_seed(0)
    return Jigsaw(replace(TINY, **fields))


def tiles(b: int = 2, t: int = 7) -> torch.Tensor:
    return torch.randint(0, 256, (b, 9, 3, t, t), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_tile_lies_in_its_own_cell_and_so_never_on_another():
    """Every pixel holds its cell's number and its place, so a tile says where it was cut."""
    side, size = 45, 9
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    square = torch.stack([rows, columns, rows // 15 * 3 + columns // 15]).to(torch.uint8)
    seen = set()
    for seed in range(200):
        cut = cut_tiles(square, np.random.default_rng(seed), size)
        assert cut.shape == (9, 3, size, size)
        for k in range(9):
            assert (cut[k, 2] == k).all(), f"tile {k} leaves its cell"
            seen.add((int(cut[k, 0, 0, 0]) % 15, int(cut[k, 1, 0, 0]) % 15))
    assert seen == {(y, x) for y in range(7) for x in range(7)}, "the jitter does not use the whole cell"


def test_the_mean_gap_between_tiles_is_what_is_left_of_a_cell():
    columns = torch.arange(255, dtype=torch.uint8).expand(1, 255, 255)
    gaps = []
    for seed in range(300):
        cut = cut_tiles(columns, np.random.default_rng(seed), 64)
        gaps.append(int(cut[1, 0, 0, 0]) - int(cut[0, 0, 0, -1]) - 1)
    assert 0 <= min(gaps) and max(gaps) <= 42
    assert abs(np.mean(gaps) - 21) < 4 * (2 * (22**2 - 1) / 12) ** 0.5 / 300**0.5


def test_every_tile_has_mean_0_and_deviation_1_by_itself():
    x = standardize_tiles(tiles())
    assert x.mean((-2, -1)).abs().max() < 1e-5
    assert (x.std((-2, -1), correction=0) - 1).abs().max() < 1e-5
    brighter = (0.3 * tiles().float() + 40) / 255
    assert torch.allclose(standardize_tiles(brighter), x, atol=1e-4), "brightness and contrast are seen"


def test_a_tile_of_one_colour_becomes_zero():
    flat = torch.full((1, 9, 3, 7, 7), 77, dtype=torch.uint8)
    assert standardize_tiles(flat).abs().max() < 1e-3


def test_an_order_and_its_inverse_restore_the_tiles():
    orders = permutation_set(2)
    shown = shuffle(tiles(), orders)
    for b in range(2):
        for place in range(9):
            assert torch.equal(shown[b, place], tiles()[b, orders[b, place]])
    assert torch.equal(unshuffle(shown, orders), tiles())


def test_loss_equals_plain_python():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    orders = [3, 0, 6, 3, 1]
    expected = sum(
        math.log(sum(math.exp(x) for x in row)) - row[k] for row, k in zip(logits.tolist(), orders, strict=True)
    )
    assert jigsaw_loss(logits, torch.tensor(orders)).item() == pytest.approx(expected / 5, rel=1e-6)


def test_features_that_are_permuted_equal_pixels_that_are_permuted():
    """Several orders from one pass have the same loss as from as many passes, in training too."""
    network = method(orders_per_image=3).train()
    orders = torch.tensor([[0, 5, 71], [9, 33, 2]])
    fast = network({"views": [tiles()], "orders": orders}, 0.0)
    pixels = torch.cat([shuffle(tiles(), network.permutations[orders[:, m]]) for m in range(3)])
    logits = method(orders_per_image=3).train().logits(pixels)
    slow = jigsaw_loss(logits, orders.T.flatten())
    assert fast["loss"].item() == pytest.approx(slow.item(), rel=1e-4)


def test_one_pass_of_the_encoder_serves_all_orders_of_an_image():
    network, rows = method(orders_per_image=8), []
    network.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    orders = torch.arange(16).view(2, 8)
    network({"views": [tiles()], "orders": orders}, 0.0)
    assert rows == [2 * 9], "the encoder saw other than the nine tiles of each image, once"


def test_the_network_that_knows_the_order_solves_the_puzzle(monkeypatch):
    network = method().eval()
    asked = torch.tensor([17, 44])
    shown = shuffle(tiles(), network.permutations[asked])
    answer = torch.nn.functional.one_hot(asked, 72).float()
    monkeypatch.setattr(network, "logits", lambda tiles: answer)
    assert torch.equal(network.solve(shown), tiles())


def test_the_weights_are_drawn_from_the_first_layer_to_the_last():
    """Otherwise the same seed would start another run than it did before."""
    network = method()
    torch.manual_seed(0)
    encoder = build_encoder(TINY)
    expected = [torch.nn.Linear(*sizes, bias=False).weight for sizes in ((encoder.features, 8), (9 * 8, 16), (16, 72))]
    found = [network.embed[0].weight, network.head[0].weight, network.head[4].weight]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_orders_travel_with_the_weights(tmp_path):
    network = method(seed=5)
    loaded = Jigsaw.from_pretrained(network.save_pretrained(tmp_path))
    assert torch.equal(loaded.permutations, network.permutations)
    assert not torch.equal(loaded.permutations, method(seed=6).permutations)


def test_a_sample_is_nine_tiles_in_their_true_places_and_different_orders():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    sample = JigsawView(replace(TINY, orders_per_image=8))({"image": image}, np.random.default_rng(0))
    assert sample["views"][0].shape == (9, 3, 7, 7) and sample["views"][0].dtype == torch.uint8
    assert sample["orders"].shape == (8,) and sample["orders"].dtype == torch.int64
    assert len(set(sample["orders"].tolist())) == 8
    again = JigsawView(replace(TINY, orders_per_image=8))({"image": image}, np.random.default_rng(0))
    assert torch.equal(again["views"][0], sample["views"][0]) and torch.equal(again["orders"], sample["orders"])


def test_as_many_images_are_grey_as_the_config_says():
    image = torch.randint(0, 256, (3, 30, 30), dtype=torch.uint8)
    grey = [
        bool((t[:, 0] == t[:, 1]).all())
        for t in (JigsawView(TINY)({"image": image}, np.random.default_rng(k))["views"][0] for k in range(300))
    ]
    assert abs(np.mean(grey) - 0.66) < 4 * (0.66 * 0.34 / 300) ** 0.5


def test_grey_is_the_luma():
    view = TilesView(replace(TINY, grayscale=1.0))
    for levels, grey in (([255, 0, 0], 76), ([10, 30], 20)):
        image = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 30, 30)
        assert (view({"image": image}, np.random.default_rng(0))["views"][0] == grey).all()


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (2, 8, 3, 7, 7), (2, 9, 1, 7, 7)])
def test_tiles_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"tiles must be \(b, 9, 3, h, w\), got \("):
        method().logits(torch.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile_size": 10}, "tile_size = 10: must be at most 9, a cell"),
        ({"permutations": 1}, "permutations = 1: must be at least 2 and at most 362,880"),
        ({"orders_per_image": 73}, "orders_per_image = 73: must be at most 72"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"grayscale": 1.5}, "grayscale = 1.5"),
        ({"hidden": 0}, "hidden = 0"),
        ({"backbone": "vit", "patch_size": 4}, "tile_size = 7: must be divisible by the patch size 4"),
        ({"crop_scale": (0.5, 0.2)}, "must be rising"),
    ],
)
def test_a_config_that_cannot_work_names_its_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **fields)


def test_a_vit_sees_tiles_and_whole_images():
    network = method(backbone="vit", patch_size=4, dim=16, depth=1, heads=2, tile_size=8, permutations=9)
    assert network.logits(tiles(t=8)).shape == (2, 9)
    assert network.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 16)
    assert network.patch_features(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 4, 4, 16)
