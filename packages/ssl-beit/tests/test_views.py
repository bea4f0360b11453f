"""Block masks follow the published law; both views of BEiT are the same box."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_beit import block_mask
from ssl_beit.config import demo, demo_dvae
from ssl_beit.views import build_beit, build_dvae, lanczos

DRAWS = 2000


def plain_mask(side: int, budget: int, smallest: int, dice: random.Random) -> list[list[int]]:
    """The law in loops over cells."""
    mask = [[0] * side for _ in range(side)]
    count = 0
    while count < budget:
        rest, added = budget - count, 0
        for _ in range(10):
            area = dice.uniform(smallest, rest)
            aspect = math.exp(dice.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= side or w >= side:
                continue
            top, left = dice.randint(0, side - h), dice.randint(0, side - w)
            cells = [(y, x) for y in range(top, top + h) for x in range(left, left + w) if not mask[y][x]]
            if 0 < len(cells) <= rest:
                for y, x in cells:
                    mask[y][x] = 1
                added = len(cells)
                break
        if not added:
            break
        count += added
    return mask


def drawn(side: int, budget: int, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """(ours, the plain ones), (DRAWS, side, side) each."""
    rng, dice = np.random.default_rng(0), random.Random(0)
    ours = np.stack([block_mask(side, side, budget, rng, smallest=smallest) for _ in range(DRAWS)])
    return ours, np.array([plain_mask(side, budget, smallest, dice) for _ in range(DRAWS)], bool)


@pytest.mark.parametrize(("side", "budget", "smallest"), [(14, 75, 16), (8, 25, 6), (4, 6, 2)])
def test_masks_have_the_statistics_of_a_plain_implementation(side, budget, smallest):
    ours, plain = drawn(side, budget, smallest)
    for statistic in (
        lambda m: m.sum((1, 2)),  # how many
        lambda m: m.sum((1, 2)) == budget,  # how often all of them
        lambda m: (m[:, 1:] != m[:, :-1]).sum((1, 2)),  # edges, so how large the blocks are
        lambda m: m.any(2).sum(1),  # rows that are touched
        lambda m: m[:, 0, 0],
        lambda m: m[:, side // 2, side // 2],
    ):
        a, b = (statistic(m).astype(float) for m in (ours, plain))
        error = math.sqrt((a.var() + b.var()) / DRAWS)
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-9


def test_a_mask_covers_at_most_75_patches_and_seldom_fewer():
    rng = np.random.default_rng(1)
    counts = np.array([block_mask(14, 14, 75, rng).sum() for _ in range(DRAWS)])
    assert counts.max() == 75
    assert counts.min() >= 50
    assert counts.mean() == pytest.approx(74.5, abs=0.3)


class Fixed:
    """A generator that draws the same number always."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value)


@pytest.mark.parametrize(("height", "count"), [(14, 0), (16, 0), (17, 80)])
def test_a_block_is_never_as_high_as_the_grid(height, count):
    # near 1 the draws make a block of 16 x 5 patches
    assert block_mask(height, 20, 80, Fixed(0.999), smallest=80).sum() == count


@pytest.mark.parametrize(("width", "count"), [(14, 0), (16, 0), (17, 80)])
def test_a_block_is_never_as_wide_as_the_grid(width, count):
    # near 0 they make one of 5 x 16
    assert block_mask(20, width, 80, Fixed(0.001), smallest=80).sum() == count


def test_masks_differ_and_the_generator_decides_them():
    masks = [block_mask(14, 14, 75, np.random.default_rng(seed)) for seed in (0, 1, 0)]
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    assert masks[0].dtype == bool and masks[0].shape == (14, 14)


def test_a_grid_need_not_be_square_nor_narrow():
    rng = np.random.default_rng(3)
    assert block_mask(3, 70, 40, rng, smallest=4).shape == (3, 70)
    assert 0 < block_mask(2, 9, 5, rng, smallest=1).sum() <= 5


@pytest.mark.parametrize(("height", "width", "budget"), [(1, 14, 3), (14, 14, 0), (4, 4, 17)])
def test_masks_that_cannot_be_are_refused(height, width, budget):
    with pytest.raises(ValueError, match=f"no block mask of {budget} patches on a grid of {height} x {width}"):
        block_mask(height, width, budget, np.random.default_rng(0))


CONFIG = dataclasses.replace(demo(), image_size=(64, 96), patch_size=16, mask_patches=8, crop_scale=(0.2, 1.0))


def ramp(height: int = 120, width: int = 150) -> torch.Tensor:
    """A picture whose red is its column and whose green is its row, in shares of 200."""
    columns = torch.linspace(0, 200, width).expand(height, width)
    rows = torch.linspace(0, 200, height)[:, None].expand(height, width)
    return torch.stack([columns, rows, torch.full((height, width), 90.0)]).round().to(torch.uint8)


def test_both_views_are_the_same_box_in_two_sizes():
    view, rng = build_beit(CONFIG), np.random.default_rng(0)
    boxes = set()
    for _ in range(20):
        sample = view({"image": ramp()}, rng)
        large, small = sample["views"]
        assert large.shape == (3, 64, 96) and small.shape == (3, 32, 48)
        assert large.dtype == small.dtype == torch.uint8
        patches = large.float().unfold(1, 16, 16).unfold(2, 16, 16).mean((3, 4))
        tokens = small.float().unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))
        assert (patches - tokens).abs().max() < 1.5, "a token shows what its patch shows"
        boxes.add(tuple(large[:2, 0, 0].tolist()))
    assert len(boxes) > 10


def test_masks_differ_within_a_batch_and_keep_the_budget():
    view, rng = build_beit(CONFIG), np.random.default_rng(0)
    masks = torch.stack([view({"image": ramp()}, rng)["mask"] for _ in range(16)])
    assert masks.shape == (16, 24) and masks.dtype == torch.bool
    assert masks.sum(1).max() <= 8
    assert len({tuple(mask.tolist()) for mask in masks}) > 8


def test_a_sample_depends_on_its_own_stream_alone():
    view = build_beit(CONFIG)
    first, second = (view({"image": ramp()}, np.random.default_rng(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first["views"], second["views"], strict=True))
    assert torch.equal(first["mask"], second["mask"])


def test_jitter_changes_colours_of_both_views_alike():
    plain = build_beit(dataclasses.replace(CONFIG, jitter=0.0, flip=False, crop_scale=(1.0, 1.0)))
    changed = build_beit(dataclasses.replace(CONFIG, jitter=0.4, flip=False, crop_scale=(1.0, 1.0)))
    before, after = (view({"image": ramp()}, np.random.default_rng(3))["views"] for view in (plain, changed))
    shifts = [(b.float() - a.float()).mean((1, 2)) for a, b in zip(before, after, strict=True)]
    assert shifts[0].abs().max() > 2
    assert torch.allclose(shifts[0], shifts[1], atol=2)


def test_grey_pictures_are_jittered_without_saturation():
    config = dataclasses.replace(CONFIG, in_channels=1, mean=(0.5,), std=(0.5,), jitter=0.4)
    views = build_beit(config)({"image": ramp()[:1]}, np.random.default_rng(0))["views"]
    assert [view.shape for view in views] == [(1, 64, 96), (1, 32, 48)]


def test_lanczos_is_pillows():
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 24), Image.Resampling.LANCZOS)
    assert torch.equal(lanczos(image, 24, 16), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert torch.equal(lanczos(image, 40, 30), image)


def test_the_tokenizers_view_is_a_crop_and_a_seed_of_its_own():
    view = build_dvae(dataclasses.replace(demo_dvae(), image_size=(32, 48)))
    samples = [view({"image": ramp()}, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert samples[0]["views"][0].shape == (3, 32, 48)
    assert torch.equal(samples[0]["views"][0], samples[1]["views"][0])
    assert samples[0]["seed"] == samples[1]["seed"] != samples[2]["seed"]
    assert samples[0]["seed"].dtype == torch.int64
