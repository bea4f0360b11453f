"""The augmentations follow the laws of torchvision's, whose pictures they give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.data.views import (
    EvalTransform,
    crop_box,
    eval_view,
    normalize,
    random_flip,
    random_resized_crop,
    resize,
)
from ssl_core.testing.tiny import TinyConfig


def picture(h, w, c=3, seed=0):
    """A smooth uint8 picture (c, h, w) with noise on it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    waves = [127 + 90 * np.sin((i + 1) * (y / h * 7 + x / w * 5)) + rng.normal(0, 12, (h, w)) for i in range(c)]
    return torch.from_numpy(np.stack(waves).clip(0, 255).astype(np.uint8))


def boxes(number, h, w, scale, ratio=(3 / 4, 4 / 3)):
    rng = np.random.default_rng(0)
    return np.array([crop_box(rng, h, w, scale, ratio) for _ in range(number)])


def largest_gap(a, b):
    """Kolmogorov and Smirnov's statistic of two samples."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    return np.abs(np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)).max()


@pytest.mark.parametrize(("h", "w"), [(60, 80), (32, 32), (30, 100), (200, 21)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 0.5), (0.9, 1.0)])
def test_boxes_have_the_law_of_torchvision(h, w, scale):
    transforms = pytest.importorskip("torchvision.transforms")
    number = 5000
    ours = boxes(number, h, w, scale)
    torch.manual_seed(0)
    empty = torch.empty(1, h, w)
    get_params = transforms.RandomResizedCrop.get_params
    theirs = np.array([get_params(empty, list(scale), [3 / 4, 4 / 3]) for _ in range(number)])
    limit = 1.95 * math.sqrt(2 / number)  # p = 0.001
    for column in range(4):
        assert largest_gap(ours[:, column], theirs[:, column]) < limit, "top left height width".split()[column]
    for product in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 3] / box[:, 2]):
        assert largest_gap(product(ours), product(theirs)) < limit


def test_another_law_would_be_seen():
    ours, narrow = boxes(5000, 60, 80, (0.08, 1.0)), boxes(5000, 60, 80, (0.13, 1.0))
    assert largest_gap(ours[:, 2] * ours[:, 3], narrow[:, 2] * narrow[:, 3]) > 1.95 * math.sqrt(2 / 5000)


@pytest.mark.parametrize(
    ("h", "w", "expected"), [(10, 1000, (0, 493, 10, 13)), (1000, 12, (492, 0, 16, 12)), (12, 12, (0, 0, 12, 12))]
)
def test_a_crop_that_does_not_fit_is_the_largest_one_in_the_middle(h, w, expected):
    assert crop_box(np.random.default_rng(0), h, w, (2.0, 3.0)) == expected


def test_boxes_lie_within_the_picture():
    for h, w in ((1, 1), (1, 50), (7, 3), (64, 48)):
        for top, left, height, width in boxes(200, h, w, (0.01, 1.0)):
            assert 0 <= top <= h - height < h and 0 <= left <= w - width < w


@pytest.mark.parametrize("size", [(24, 24), (40, 32), (90, 70)])
def test_a_resized_crop_is_torchvisions_within_one_grey_level(size):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    image, rng, other = picture(60, 80), np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        ours = random_resized_crop(image, rng, size, (0.2, 1.0))
        top, left, h, w = crop_box(other, 60, 80, (0.2, 1.0))
        theirs = v2.functional.resized_crop(
            image, top, left, h, w, list(size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        )
        assert ours.dtype == torch.uint8 and ours.shape == (3, *size)
        assert (ours.float() - theirs.float()).abs().mean() <= 1


@pytest.mark.parametrize("size", [(24, 24), (31, 50), (120, 100)])
def test_resizing_is_pillows_bicubic_within_one_grey_level(size):
    image = picture(60, 80)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1).float()
    gap = (resize(image, *size).float() - expected).abs()
    assert gap.mean() <= 1 and gap.max() <= 3


def test_resizing_does_not_wrap_around_at_black_and_white():
    edge = torch.zeros(1, 16, 16, dtype=torch.uint8)
    edge[:, :, 8:] = 255
    large = resize(edge, 64, 64)
    assert large[:, :, :20].max() <= 1 and large[:, :, 44:].min() >= 254


def test_a_picture_of_the_right_size_is_not_touched():
    image = picture(8, 8)
    assert resize(image, 8, 8) is image


def test_a_flip_mirrors_half_of_the_pictures():
    image, rng = picture(4, 6), np.random.default_rng(0)
    flipped = [torch.equal(random_flip(image, rng), image.flip(-1)) for _ in range(1000)]
    assert 450 < sum(flipped) < 550
    assert torch.equal(random_flip(image, rng, p=0.0), image)
    assert torch.equal(random_flip(image, rng, p=1.0), image.flip(-1))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_normalising_is_division_then_standardisation(channels):
    mean, std = tuple(0.1 * (i + 1) for i in range(channels)), tuple(0.2 + 0.1 * i for i in range(channels))
    images = torch.stack([picture(4, 6, channels, seed) for seed in range(2)])
    out = normalize(images, mean, std)
    assert out.dtype == torch.float32
    for c in range(channels):
        expected = (images[:, c].double() / 255 - mean[c]) / std[c]
        assert (out[:, c].double() - expected).abs().max() < 1e-5
    assert normalize(out, mean, std) is out


@pytest.mark.parametrize("shape", [(2, 3, 8), (3, 8, 8), (2, 4, 8, 8), (2, 8, 8, 3)])
def test_pictures_of_another_shape_are_an_error_that_names_both(shape):
    with pytest.raises(ValueError, match=r"images must be \(b, 3, h, w\) for 3 channel means, got"):
        normalize(torch.zeros(shape, dtype=torch.uint8), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(("h", "w"), [(100, 140), (140, 100), (64, 64), (20, 33), (33, 79), (8, 500), (1, 1)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_evaluation_view_is_a_resize_and_a_centre_crop(h, w, crop_pct):
    image = picture(h, w)
    [view] = EvalTransform((32, 32), crop_pct)({"image": image})["views"]
    assert view.shape == (3, 32, 32) and view.dtype == torch.uint8
    transforms = pytest.importorskip("torchvision.transforms.v2")
    resized = transforms.Resize(int(32 / crop_pct), transforms.InterpolationMode.BICUBIC, antialias=True)
    expected = transforms.CenterCrop(32)(resized(image)).float()
    assert (view.float() - expected).abs().mean() <= 1


def test_the_evaluation_view_draws_nothing_and_fits_oblong_sizes():
    view = eval_view(TinyConfig(image_size=(8, 24), patch_size=4))
    assert view.size == (8, 24) and view.crop_pct == 1.0
    image = picture(50, 60)
    first, second = (view({"image": image}, rng)["views"][0] for rng in (None, np.random.default_rng(1)))
    assert first.shape == (3, 8, 24) and torch.equal(first, second)


def test_a_seed_gives_the_same_crop_and_another_seed_another():
    image = picture(40, 40)
    crops = [random_resized_crop(image, np.random.default_rng(seed), (8, 8), (0.2, 0.5)) for seed in (0, 0, 1)]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])
