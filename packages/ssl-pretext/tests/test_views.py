"""Views give no answer away: only what is in the picture does.

The pictures here are noise without an up, a middle or a neighbour. Whatever a linear model finds in
them comes from the way the task is made. Each check is also run on a task that is made badly, and
has to find that.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_pretext import Colorization, ColorizationConfig, lab_to_rgb, permutation_set, rgb_to_lab
from ssl_pretext.config import JigsawConfig, RotationConfig
from ssl_pretext.jigsaw import shuffle
from ssl_pretext.relative_patch import neighbours
from ssl_pretext.rotation import four_rotations, turns_of
from ssl_pretext.tiles import standardize_tiles
from ssl_pretext.views import SquareView, TilesView

COUNT = 600
ROTATION = RotationConfig(backbone="resnet18", image_size=24, crop_scale=(0.4, 1.0))
TILES = JigsawConfig(backbone="resnet18", image_size=24, puzzle_size=36, tile_size=10, permutations=9, grayscale=0.0)


def noise(h: int = 40, w: int = 64, number: int = COUNT) -> Tensor:
    """Oblong pictures uint8 (n, 3, h, w) of isotropic noise, a few pixels fine."""
    x = torch.rand(number, 3, h, w, generator=torch.Generator().manual_seed(0))
    x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return (255 * (0.5 + 2 * (x - 0.5)).clamp(0, 1)).to(torch.uint8)


def accuracy(x: Tensor, y: Tensor) -> tuple[float, float]:
    """(accuracy of a ridge regression to one-hot answers; three sigma above chance).

    It is fitted to the even rows and tested on the odd ones.
    """
    x = x.double()
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-9)
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    fit, held = slice(0, None, 2), slice(1, None, 2)
    classes = int(y.max()) + 1
    gram = x[fit].T @ x[fit] + 30 * torch.eye(x.shape[1])
    weight = torch.linalg.solve(gram, x[fit].T @ F.one_hot(y[fit], classes).double())
    right = ((x[held] @ weight).argmax(1) == y[held]).double().mean().item()
    chance = 1 / classes
    return right, chance + 3 * (chance * (1 - chance) / len(y[held])) ** 0.5


def border(images: Tensor) -> Tensor:
    """The outermost pixels, and how much neighbouring pixels differ along each axis: (n, …)."""
    x = images.float() / 255
    edge = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], -1).flatten(1)
    across, down = x.diff(dim=-1).abs().mean((-2, -1)), x.diff(dim=-2).abs().mean((-2, -1))
    return torch.cat([edge, across, down], 1)


def mixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    return x[order], y[order]


def test_border_pixels_of_oblong_pictures_do_not_tell_the_rotation():
    view = SquareView(ROTATION)
    crops = [view({"image": image}, np.random.default_rng(i))["views"][0] for i, image in enumerate(noise())]
    turned = four_rotations(torch.stack(crops))
    found, bound = accuracy(*mixed(border(turned), turns_of(turned)))
    assert found < bound, f"{found:.1%} of the rotations are told from the border, chance 25 %"


def test_the_same_check_sees_rotations_that_were_squeezed_into_a_square():
    turned = torch.cat([F.interpolate(torch.rot90(noise(), k, (-2, -1)).float(), (24, 24)) for k in range(4)])
    found, bound = accuracy(*mixed(border(turned), turns_of(turned)))
    assert found > bound + 0.1, "rotated, then resized: the check is blind to what every oblong picture betrays"


def corners(tiles: Tensor) -> Tensor:
    """The 2 x 2 pixels in each corner of tiles (n, …, c, h, w), raw: (n, …)."""
    x = tiles.float() / 255
    ends = [0, 1, -2, -1]
    return x[..., ends, :][..., ends].flatten(1)


def cut(images: Tensor) -> Tensor:
    view = TilesView(TILES)
    return torch.stack([view({"image": x}, np.random.default_rng(i))["views"][0] for i, x in enumerate(images)])


def pairs_of(tiles: Tensor) -> tuple[Tensor, Tensor]:
    pairs = neighbours("centre")
    both = torch.stack([tiles[:, pairs[:, 0]], tiles[:, pairs[:, 1]]], 2)  # b 8 2 c h w
    return both.flatten(0, 1), pairs[:, 2].repeat(len(tiles))


def test_raw_corners_of_tiles_do_not_tell_where_the_second_lies():
    both, answers = pairs_of(cut(noise()))
    found, bound = accuracy(*mixed(corners(both), answers))
    assert found < bound, f"{found:.1%} of the directions are told from the corners, chance 12.5 %"


def test_raw_corners_of_tiles_do_not_tell_their_order():
    orders = permutation_set(9)
    asked = torch.arange(COUNT) % 9
    shown = shuffle(cut(noise()), orders[asked])
    found, bound = accuracy(*mixed(corners(shown), asked))
    assert found < bound, f"{found:.1%} of the orders are told from the corners, chance 11.1 %"


@pytest.mark.parametrize("standardized", [False, True])
def test_brightness_that_falls_off_to_the_rim_is_seen_in_raw_tiles_and_gone_once_standardised(standardized):
    """A lens darkens every picture's rim, so tiles differ in their means until standardised."""
    place = torch.linspace(-1, 1, 40)
    rim = (place[:, None] ** 2 + place**2)[None, None] * 60
    both, answers = pairs_of(cut((noise(40, 40).float() - rim).clamp(0, 255).to(torch.uint8)))
    x = standardize_tiles(both) if standardized else both.float() / 255
    found, bound = accuracy(*mixed(x.mean((-2, -1)).flatten(1), answers))
    assert (found < bound) == standardized, f"{found:.1%} of the directions are told from the tiles' means"


def test_touching_tiles_go_on_across_their_border_and_tiles_with_gaps_do_less():
    """Products of facing border pixels, which a linear model of single pixels cannot form."""

    def facing(tiles: Tensor) -> Tensor:
        x = standardize_tiles(tiles)
        first, second = x[:, 0], x[:, 1]
        both = ((first, second), (second, first))
        sides = [side for a, b in both for side in ((a[..., :, -1], b[..., :, 0]), (a[..., -1, :], b[..., 0, :]))]
        return torch.stack([(a * b).mean((-2, -1)) for a, b in sides], 1)

    touching = noise(36, 36).unfold(2, 12, 12).unfold(3, 12, 12).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    found = []
    for tiles in (touching, cut(noise(36, 36))):
        both, answers = pairs_of(tiles)
        found.append(accuracy(*mixed(facing(both), answers))[0])
    near, far = found
    assert near > 0.45, "the check does not see borders that go on"
    assert far < near - 0.15


def test_the_encoder_of_a_colorization_sees_nothing_of_the_colours():
    torch.manual_seed(0)
    config = ColorizationConfig(backbone="resnet18", width=4, small_stem=True, image_size=16, hidden=8)
    network = Colorization(config).eval()
    lab = rgb_to_lab(noise(16, 16, 8).float() / 255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    features = []
    for turn in (0.0, 2.0, 4.0):  # the same lightness in other, dull hues
        angle = torch.full_like(lab[:, :1], turn)
        hue = torch.cat([50 + 0.2 * (lab[:, :1] - 50), 8 * angle.cos(), 8 * angle.sin()], 1)
        features.append(network.encode((lab_to_rgb(hue) - mean) / std))
    for other in features[1:]:
        assert (other - features[0]).abs().max() < 1e-3 * features[0].abs().max()
