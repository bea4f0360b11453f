"""The augmentations follow the laws of torchvision's, whose pictures they give."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import DataError
from ssl_core.pixels import normalize
from ssl_testing.tiny import TinyConfig
from ssl_train.data import operations
from ssl_train.data.views import (
    Augment,
    EvalTransform,
    color_jitter,
    crop_box,
    draw_jitter,
    eval_view,
    natural,
    random_flip,
    random_grayscale,
    random_resized_crop,
    random_turn,
    resize,
)
from ssl_train.domains import VIEWS


def domain(name, size):
    """The view of a method that has every setting of `VIEWS`, as ssl-contrastive's."""
    if name == "natural":
        return natural(size)
    values = dict(VIEWS[name])
    turn = values.pop("turn", False)
    for left_out in ("grayscale", "global_scale", "local_scale"):
        values.pop(left_out, None)
    return Augment(size=size, scale=values.pop("crop_scale"), vertical_flip=turn, rotate90=turn, **values)


DOMAINS = {name: partial(domain, name) for name in VIEWS}


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


SIMCLR = natural((32, 32))
BYOL_2 = Augment(
    size=(32, 32), jitter=(0.4, 0.4, 0.2, 0.1), grayscale_p=0.2, blur_p=0.1, solarize_p=0.2, vertical_flip=True
)
EVERYTHING = Augment(
    size=(24, 24), rotate90=True, vertical_flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=1.0, gamma=(0.8, 1.2),
    grayscale_p=1.0, blur_p=1.0, solarize_p=1.0,
)  # fmt: skip


def within(count, number, p):
    """Whether a count is that of `number` draws with probability `p`, by four standard
    deviations."""
    return abs(count - number * p) <= 4 * math.sqrt(number * p * (1 - p))


def test_jitter_has_the_law_of_torchvision():
    transforms = pytest.importorskip("torchvision.transforms")
    rng, number = np.random.default_rng(0), 4000
    ours = [draw_jitter(rng, (0.8, 0.4, 1.3, 0.2)) for _ in range(number)]
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.8, 0.4, 1.3, 0.2)
    theirs = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(number)
    ]
    names = ["brightness", "contrast", "saturation", "hue"]
    for i, name in enumerate(names):
        factors = np.array([dict(steps)[name] for steps in ours])
        assert largest_gap(factors, np.array([drawn[i + 1] for drawn in theirs])) < 1.95 * math.sqrt(2 / number), name
        for place in range(4):
            assert within(sum(steps[place][0] == name for steps in ours), number, 0.25), "orders are equally likely"
    assert len({tuple(step[0] for step in steps) for steps in ours}) == 24
    assert 0 <= min(dict(steps)["saturation"] for steps in ours) < 0.01, "not from 1 - 1.3 on"


def test_strength_zero_is_left_out_without_changing_the_other_draws():
    full = draw_jitter(np.random.default_rng(5), (0.8, 0.8, 0.8, 0.2))
    part = draw_jitter(np.random.default_rng(5), (0.8, 0.8, 0.0, 0.0))
    assert part == tuple(step for step in full if step[0] in ("brightness", "contrast"))


@pytest.mark.parametrize("name", ["grayscale", "blur", "solarize"])
def test_random_operations_happen_as_often_as_they_should(name):
    image, rng, whole = picture(12, 12), np.random.default_rng(0), {"size": (12, 12), "scale": (1.0, 1.0)}

    def changed(p):
        augment = Augment(**whole, ratio=(1.0, 1.0), flip=False, **{f"{name}_p": p})
        return not torch.equal(augment(image, rng), image)

    assert not changed(0.0) and changed(1.0)
    # a blur of less than 1/6 pixel is none
    assert within(
        sum(changed(0.2) for _ in range(2000)), 2000, 0.2 * (1 - (1 / 6 - 0.1) / 1.9 if name == "blur" else 1)
    )


def test_grey_comes_as_often_as_it_should():
    image, rng = picture(12, 12), np.random.default_rng(0)
    assert torch.equal(random_grayscale(image, rng, 0.0), image)
    assert not torch.equal(random_grayscale(image, rng, 1.0), image)
    assert within(sum(not torch.equal(random_grayscale(image, rng, 0.2), image) for _ in range(2000)), 2000, 0.2)


def test_jitter_of_an_image_is_its_operations_in_their_order():
    image = picture(20, 20)
    for seed in range(20):
        steps = draw_jitter(np.random.default_rng(seed), (0.8, 0.8, 0.8, 0.2))
        jittered = color_jitter(image, np.random.default_rng(seed), 0.8, 0.8, 0.8, 0.2)
        expected = image
        for name, value in steps:
            expected = operations.chain(expected, [(name, value)])
        assert torch.equal(jittered, expected)


@pytest.mark.parametrize("augment", [SIMCLR, BYOL_2, EVERYTHING], ids=["simclr", "byol", "everything"])
def test_a_view_is_torchvisions_with_the_same_parameters(augment):
    v2 = pytest.importorskip("torchvision.transforms.v2").functional
    from torchvision.transforms import InterpolationMode

    theirs = {
        "brightness": v2.adjust_brightness, "contrast": v2.adjust_contrast, "saturation": v2.adjust_saturation,
        "hue": v2.adjust_hue, "gamma": v2.adjust_gamma, "blur": lambda x, s: v2.gaussian_blur(x, [23, 23], [s, s]),
        "grayscale": lambda x, _: v2.rgb_to_grayscale(x, 3), "solarize": lambda x, t: v2.solarize(x, 256 * t),
    }  # fmt: skip
    image, gaps = picture(60, 80), []
    for seed in range(100):
        drawn = augment.draw(np.random.default_rng(seed), 3, 60, 80)
        expected = v2.resized_crop(image, *drawn.box, list(augment.size), InterpolationMode.BICUBIC, antialias=True)
        expected = v2.vertical_flip(expected) if drawn.upside_down else expected
        expected = v2.horizontal_flip(expected) if drawn.mirror else expected
        expected = v2.rotate(expected, 90 * drawn.turns)
        for name, value in drawn.steps:
            expected = theirs[name](expected, value)
        view = augment(image, np.random.default_rng(seed))
        assert view.dtype == torch.uint8 and view.shape == (3, *augment.size) and view.is_contiguous()
        gaps.append((view.float() - expected.float()).abs().mean().item())
    assert np.mean(gaps) < 1


def test_frequencies_and_ranges_are_those_of_the_fields():
    rng, number = np.random.default_rng(0), 10000
    augment = Augment(
        size=(16, 16), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale_p=0.2, blur_p=0.1, solarize_p=0.3,
        vertical_flip=True, rotate90=True, band_drop_p=0.15, blur_sigma=(0.5, 1.5),
    )  # fmt: skip
    drawn = [augment.draw(rng, 3, 40, 60) for _ in range(number)]
    counts = [[name for name, _ in view.steps] for view in drawn]
    for name, p in [("hue", 0.8), ("grayscale", 0.2), ("blur", 0.1), ("solarize", 0.3)]:
        assert within(sum(name in names for names in counts), number, p), name
    assert within(sum(view.mirror for view in drawn), number, 0.5)
    assert within(sum(view.upside_down for view in drawn), number, 0.5)
    assert all(within(sum(view.turns == k for view in drawn), number, 0.25) for k in range(4))
    # all three bands at once stay
    assert all(within(sum(i in view.dropped for view in drawn), number, 0.15 - 0.15**3) for i in range(3))
    sigmas = np.array([value for view in drawn for name, value in view.steps if name == "blur"])
    assert 0.5 <= sigmas.min() < 0.51 and 1.49 < sigmas.max() <= 1.5 and abs(sigmas.mean() - 1) < 0.05
    assert all(names[-1] == "solarize" for names in counts if "solarize" in names), "last of all"


def test_defaults_are_a_crop_and_a_mirroring():
    image = picture(40, 50)
    view = Augment(size=(16, 20))(image, np.random.default_rng(3))
    drawn = Augment(size=(16, 20)).draw(np.random.default_rng(3), 3, 40, 50)
    top, left, h, w = drawn.box
    expected = resize(image[:, top : top + h, left : left + w], 16, 20)
    assert torch.equal(view, expected.flip(-1) if drawn.mirror else expected) and view.is_contiguous()


def test_a_view_is_its_seeds_and_two_of_one_image_differ():
    image = picture(40, 50)
    before, rng = image.clone(), np.random.default_rng(1)
    first, second = SIMCLR(image, rng), SIMCLR(image, rng)
    again = np.random.default_rng(1)
    assert torch.equal(SIMCLR(image, again), first) and torch.equal(SIMCLR(image, again), second)
    assert not torch.equal(first, second) and torch.equal(image, before)


def test_a_view_of_the_whole_image_does_not_share_its_memory():
    image = picture(16, 16)
    view = Augment(size=(16, 16), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)(image, np.random.default_rng(0))
    assert torch.equal(view, image) and view.data_ptr() != image.data_ptr()


@pytest.mark.parametrize("name", ["natural", "medical", "satellite", "microscopy"])
@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_views_of_a_domain_take_what_they_are_for(name, channels, dtype):
    image, rng = picture(30, 40, channels).to(torch.int32), np.random.default_rng(0)
    image = (image * (257 if dtype == torch.uint16 else 1)).to(dtype)
    augment = DOMAINS[name]((16, 16))
    if name in ("natural", "microscopy") and channels != 3:
        what = "saturation" if name == "natural" else "stain"
        for refused in (lambda view: view.check(channels), lambda view: view(image, rng)):
            with pytest.raises(DataError, match=rf"{what} needs RGB images of 3 channels, these have {channels}"):
                refused(augment)
        return
    for _ in range(30):
        view = augment(image, rng)
        assert view.shape == (channels, 16, 16) and view.dtype == dtype and view.is_contiguous()


def test_a_medical_view_is_neither_mirrored_nor_blurred_and_has_no_colour():
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = DOMAINS["medical"]((16, 16)).draw(rng, 1, 30, 40)
        assert not (drawn.mirror or drawn.upside_down or drawn.turns or drawn.dropped)
        assert {name for name, _ in drawn.steps} <= {"brightness", "contrast", "gamma", "noise"}


def test_views_from_above_have_neither_grey_nor_hue_nor_negatives():
    rng = np.random.default_rng(0)
    for name, extra in (("satellite", set()), ("microscopy", {"stain"})):
        steps = [step for _ in range(200) for step, _ in DOMAINS[name]((16, 16)).draw(rng, 3, 30, 40).steps]
        assert set(steps) == {"brightness", "contrast"} | extra


def test_turned_and_mirrored_satellite_views_are_exact():
    augment = Augment(size=(8, 8), scale=(1.0, 1.0), ratio=(1.0, 1.0), vertical_flip=True, rotate90=True)
    image, rng = picture(8, 8, 5), np.random.default_rng(0)
    group = {
        torch.rot90(flipped, k, (-2, -1)).numpy().tobytes() for k in range(4) for flipped in (image, image.flip(-1))
    }
    assert {augment(image, rng).numpy().tobytes() for _ in range(200)} == group


@pytest.mark.parametrize(("size", "number"), [((6, 6), 8), ((6, 8), 4)])
def test_a_random_turn_is_one_of_the_symmetries_equally_often(size, number):
    image, rng = (picture(*size, 2).to(torch.int32) * 257).to(torch.uint16), np.random.default_rng(0)
    seen = Counter(random_turn(image, rng).numpy().tobytes() for _ in range(800))
    assert len(seen) == number and max(seen.values()) < 800 / number * 1.5
    turned = random_turn(image, rng)
    assert turned.shape == image.shape and torch.equal(turned.int().flatten().msort(), image.int().flatten().msort())


def test_a_quarter_turn_of_an_oblong_view_is_an_error():
    with pytest.raises(ValueError, match="rotate90 needs a square view, not 16 x 20 pixels"):
        Augment(size=(16, 20), rotate90=True)


def test_sixteen_bits_keep_their_levels_through_a_view_and_the_normalisation():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 4096, (1, 40, 50), dtype=np.uint16))  # 12 bits: 16 levels if made 8
    view = DOMAINS["medical"]((32, 32))(image, rng)
    assert view.dtype == torch.uint16 and len(view.to(torch.int32).unique()) > 300
    out = normalize(view[None], (0.1,), (0.2,))
    assert torch.allclose(out[0], (view.to(torch.float64) / 65535 - 0.1).div(0.2).float(), rtol=0, atol=1e-5)
