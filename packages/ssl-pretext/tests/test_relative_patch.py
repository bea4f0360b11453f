"""Relative patch location: its pairs, the loss against plain Python, and colour dropping."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.config import ConfigError
from ssl_pretext import RelativePatch, RelativePatchConfig, relative_patch_loss
from ssl_pretext.relative_patch import DIRECTIONS, neighbours
from ssl_pretext.tiles import standardize_tiles
from ssl_pretext.views import TilesView, drop_colours

RESNET: Any = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 16}
TILES: Any = {"puzzle_size": 27, "tile_size": 7, "embedding": 8, "hidden": 16}
TINY = RelativePatchConfig(**RESNET, **TILES)


def method(**fields) -> RelativePatch:
    torch.manual_seed(0)
    return RelativePatch(replace(TINY, **fields))


def tiles(b: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (b, 9, 3, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_eight_neighbours_of_the_centre_are_its_eight_directions():
    pairs = neighbours("centre")
    assert pairs[:, 0].tolist() == [4] * 8
    assert pairs[:, 1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert pairs[:, 2].tolist() == list(range(8))


def test_all_pairs_are_those_that_touch_in_both_orders_and_every_direction_has_its_opposite():
    pairs = neighbours("all").tolist()
    touching = {
        (i, j) for i in range(9) for j in range(9) if i != j and max(abs(i // 3 - j // 3), abs(i % 3 - j % 3)) == 1
    }
    assert len(pairs) == 40 and {(i, j) for i, j, _ in pairs} == touching
    label = {(i, j): direction for i, j, direction in pairs}
    for (i, j), direction in label.items():
        assert DIRECTIONS[direction] == (j // 3 - i // 3, j % 3 - i % 3)
        assert label[j, i] == 7 - direction


def test_loss_equals_plain_python():
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    answers = [3, 0, 7, 3]
    expected = sum(
        math.log(sum(math.exp(x) for x in row)) - row[k] for row, k in zip(logits.tolist(), answers, strict=True)
    )
    assert relative_patch_loss(logits, torch.tensor(answers)).item() == pytest.approx(expected / 4, rel=1e-6)


@pytest.mark.parametrize("pairs", ["centre", "all"])
def test_a_step_asks_every_pair_after_one_pass_of_the_encoder(pairs):
    network, rows = method(pairs=pairs).eval(), []
    hook = network.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    outputs = network({"views": [tiles()]}, 0.0)
    hook.remove()
    assert rows == [18]
    table = neighbours(pairs)
    logits = torch.stack([network.logits(tiles()[:, i], tiles()[:, j]) for i, j, _ in table.tolist()], 1)
    answers = table[:, 2].repeat(2)
    assert outputs["loss"].item() == pytest.approx(relative_patch_loss(logits.flatten(0, 1), answers).item(), rel=1e-5)
    assert outputs["accuracy"].item() == (logits.flatten(0, 1).argmax(1) == answers).float().mean().item()


def test_the_order_of_the_two_tiles_matters():
    network = method().eval()
    first, second = tiles()[:, 0], tiles()[:, 1]
    assert network.logits(first, second).shape == (2, 8)
    assert not torch.allclose(network.logits(first, second), network.logits(second, first), atol=1e-4)


def test_dropping_colours_leaves_one_channel_of_each_tile_and_zeros():
    kept = drop_colours(tiles()[0], np.random.default_rng(0))
    seen = set()
    for before, after in zip(tiles()[0], kept, strict=True):
        same = [bool(torch.equal(a, b)) for a, b in zip(before, after, strict=True)]
        assert sum(same) == 1
        seen.add(same.index(True))
        others = standardize_tiles(after)[[k for k in range(3) if not same[k]]]
        assert others.abs().max() < 1e-3
    assert len(seen) > 1, "every tile keeps the same channel"


def test_the_view_drops_colours_where_asked():
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    config = replace(TINY, color_drop=True, grayscale=0.0)
    dropped = TilesView(config)({"image": image}, np.random.default_rng(0))["views"][0]
    whole = TilesView(replace(config, color_drop=False))({"image": image}, np.random.default_rng(0))["views"][0]
    assert ((dropped == whole).all((-2, -1)).sum(1) == 1).all()


@pytest.mark.parametrize("shape", [(2, 9, 3, 7, 7), (3, 7, 7), (2, 4, 7, 7)])
def test_tiles_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"tiles must be \(b, 3, h, w\), got \("):
        method().logits(torch.zeros(shape), torch.zeros(shape))


def test_an_unknown_kind_of_pairs_is_refused_when_a_config_is_read():
    from ssl_core.config import from_dict

    with pytest.raises(ConfigError, match="pairs = 'some'"):
        from_dict(RelativePatchConfig, {"pairs": "some"})
