"""Rotation: exact quarter turns, the loss against plain Python, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.config import ConfigError
from ssl_core.pixels import normalize
from ssl_pretext import Rotation, RotationConfig, four_rotations, rotation_loss
from ssl_pretext.config import demo_rotation
from ssl_pretext.rotation import rotate, turns_of
from ssl_pretext.views import SquareView, open_turnable, square_crop

TINY = RotationConfig(backbone="resnet18", width=4, small_stem=True, image_size=16)


def pixels(b: int = 3, s: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (b, 3, s, s), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def method(config: RotationConfig = TINY) -> Rotation:
    torch.manual_seed(0)
    return Rotation(config)


def test_four_rotations_are_quarter_turns_counter_clockwise_in_order():
    image = torch.arange(9).view(1, 1, 3, 3)
    turned = four_rotations(image)
    assert turned.shape == (4, 1, 3, 3)
    assert turned[:, 0, 0].tolist() == [[0, 1, 2], [2, 5, 8], [8, 7, 6], [6, 3, 0]]


@pytest.mark.parametrize("turns", range(4))
def test_turns_are_numpys_and_their_inverse_is_exact(turns):
    x = pixels()
    assert np.array_equal(rotate(x, turns).numpy(), np.rot90(x.numpy(), turns, (-2, -1)))
    assert torch.equal(rotate(rotate(x, turns), 4 - turns), x)
    assert torch.equal(rotate(rotate(x, turns), -turns), x)


@pytest.mark.parametrize("turns", range(4))
def test_labels_compose(turns):
    """The rotations of a turned image are those of the image, with shifted labels."""
    plain, turned = four_rotations(pixels(1)), four_rotations(rotate(pixels(1), turns))
    for label in range(4):
        assert torch.equal(turned[label], plain[(label + turns) % 4])


def test_an_oblong_image_is_not_turned():
    with pytest.raises(ValueError, match=r"images must be square to be turned, got \(1, 3, 20, 32\)"):
        rotate(torch.zeros(1, 3, 20, 32), 1)
    with pytest.raises(ValueError, match="must be square"):
        method()({"views": [torch.zeros(2, 3, 16, 24, dtype=torch.uint8)]}, 0.0)
    with pytest.raises(ConfigError, match="image_size = .*: must be a square"):
        RotationConfig(image_size=(32, 64))


def test_loss_equals_plain_python():
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row, turn in zip(logits.tolist(), [0, 0, 1, 1, 2, 2, 3, 3], strict=True):
        expected += math.log(sum(math.exp(x) for x in row)) - row[turn]
    assert rotation_loss(logits).item() == pytest.approx(expected / 8, rel=1e-6)


def test_a_step_shows_every_image_in_all_four_rotations():
    network, images = method().eval(), pixels()
    outputs = network({"views": [images]}, 0.0)
    x = normalize(images, TINY.mean, TINY.std)
    logits = torch.cat([network.head(network.encoder(torch.rot90(x, k, (-2, -1)))) for k in range(4)])
    assert outputs["loss"].item() == pytest.approx(rotation_loss(logits).item(), rel=1e-5)
    assert outputs["accuracy"].item() == (logits.argmax(1) == turns_of(logits)).float().mean().item()


def test_logits_are_of_the_turn_of_each_image():
    network, images = method().eval(), pixels()
    assert torch.allclose(network.logits(images), network.head(network.encode(images)))
    assert network.logits(images).shape == (3, 4)


def test_equal_scores_cost_log_4():
    network = method()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    assert network({"views": [pixels()]}, 0.0)["loss"].item() == pytest.approx(math.log(4), rel=1e-6)


def test_a_view_of_an_oblong_picture_is_a_square_that_is_not_squeezed():
    """A ramp along either axis keeps its slope: both are scaled alike."""
    ramp = torch.arange(120, dtype=torch.uint8)
    wide = torch.stack([ramp.expand(60, 120), ramp[:60, None].expand(60, 120), torch.zeros(60, 120, dtype=torch.uint8)])
    for seed in range(20):
        view = square_crop(wide, np.random.default_rng(seed), 24, (0.3, 1.0)).float()
        across, down = view[0, 12, 20] - view[0, 12, 4], view[1, 20, 12] - view[1, 4, 12]
        assert abs(across - down) <= 2, f"seed {seed}: {across} grey levels across, {down} down"


def test_the_area_of_a_crop_is_the_share_that_the_config_says():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)
    widths = []
    for seed in range(300):
        view = square_crop(ramp, np.random.default_rng(seed), 32, (0.25, 0.64)).float()[0, 0]
        widths.append((view[24] - view[8]).item() / 16 * 32 / 200)
    assert 0.49 < min(widths) < 0.53 and 0.77 < max(widths) < 0.81
    shares = np.square(widths)
    assert abs(shares.mean() - 0.445) < 4 * 0.39 / 12**0.5 / 300**0.5, "the area is not uniform"


def test_half_of_the_views_are_mirrored_unless_asked_not_to():
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    views = [SquareView(demo_rotation())({"image": ramp}, np.random.default_rng(k))["views"][0] for k in range(400)]
    assert 0.42 < np.mean([bool(view[0, 0, 0] > view[0, 0, -1]) for view in views]) < 0.58
    config = RotationConfig(**{**vars(demo_rotation()), "flip": False})
    views = [SquareView(config)({"image": ramp}, np.random.default_rng(k))["views"][0] for k in range(20)]
    assert all(bool(view[0, 0, 0] < view[0, 0, -1]) for view in views)


def test_the_built_in_pictures_of_this_task_are_lit_from_anywhere():
    source, other = open_turnable(None, config=TINY), open_turnable("scenes", config=TINY, split="test")
    assert (source.light, len(source), len(other), source.size) == ("anywhere", 8000, 2000, 16)  # type: ignore[attr-defined]


def test_one_channel_and_a_vit_work_too():
    vit: Any = {"backbone": "vit", "patch_size": 4, "dim": 16, "depth": 1, "heads": 2}
    network = method(RotationConfig(**vit, image_size=16, in_channels=1, mean=(0.5,), std=(0.2,)))
    assert network.logits(pixels()[:, :1]).shape == (3, 4)
    assert network.patch_features(pixels()[:, :1]).shape == (3, 4, 4, 16)
    assert network.accumulates and not method().accumulates, "batch norm spans the batch"
