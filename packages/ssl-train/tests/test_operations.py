"""Operations on pixels give torchvision's and Pillow's results."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import DataError
from ssl_train.data import operations

BLENDS = [(name, f) for name in ("brightness", "contrast", "saturation") for f in (0.0, 0.2, 0.6, 1.0, 1.4, 1.8)]
HUES = (-0.5, -0.31, -0.1, -0.02, 0.0, 0.05, 0.2, 0.5)


def picture(h=61, w=80, c=3, seed=0):
    """uint8 (c, h, w): waves, noise, and corners of black, white, grey and pure colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    waves = [127 + 110 * np.sin((i + 1) * (y / h * 7 + x / w * 5)) + rng.normal(0, 20, (h, w)) for i in range(c)]
    image = torch.from_numpy(np.stack(waves).clip(0, 255).astype(np.uint8))
    image[:, :8, :8], image[:, :8, 8:16], image[:, :8, 16:24] = 0, 255, 77
    for i in range(c):
        image[:, 8:16, 8 * i : 8 * i + 8] = 0
        image[i, 8:16, 8 * i : 8 * i + 8] = 255
    return image


def to_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def one(name, image, value=1.0):
    return operations.chain(image, [(name, value)])


def gap(a, b):
    assert a.dtype == b.dtype == torch.uint8 and a.shape == b.shape
    return (a.float() - b.float()).abs()


def functional():
    return pytest.importorskip("torchvision.transforms.functional")


@pytest.mark.parametrize(("name", "factor"), BLENDS)
def test_blends_are_pillows_to_the_bit_but_for_rounding_and_torchvisions_within_a_level(name, factor):
    theirs, image = getattr(functional(), f"adjust_{name}"), picture()
    ours = one(name, image, factor)
    pillow = gap(ours, from_pillow(theirs(to_pillow(image), factor)))
    assert pillow.max() <= 1 and pillow.mean() < 0.02  # where a blend is whole, the last bit of a float decides
    assert gap(ours, theirs(image, factor)).mean() <= 1


@pytest.mark.parametrize("shift", HUES)
def test_hue_is_torchvisions(shift):
    image = picture()
    difference = gap(one("hue", image, shift), functional().adjust_hue(image, shift))
    assert difference.max() <= 1 and difference.mean() < 0.1


@pytest.mark.parametrize("shift", HUES)
def test_hue_is_the_standard_librarys_hsv(shift):
    image = picture(20, 24)
    turned = one("hue", image, shift)
    for pixel, new in zip(image.flatten(1).T.tolist(), turned.flatten(1).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(x / 255 for x in pixel))
        assert np.allclose(new, np.multiply(colorsys.hsv_to_rgb((h + shift) % 1.0, s, v), 255), rtol=0, atol=0.501)


def test_a_turned_hue_leaves_grey_white_and_black_alone_and_comes_round():
    image = picture()
    assert torch.equal(one("hue", image, 0.3)[:, :8, :24], image[:, :8, :24])
    assert torch.equal(one("hue", image, 0.5), one("hue", image, -0.5))
    third = one("hue", image, 1 / 3)
    assert (third[[1, 2, 0]].float() - image.float()).abs().max() <= 1, "a third of the circle permutes the channels"


def test_grey_is_pillows_luma():
    image, theirs = picture(), functional()
    difference = gap(one("grayscale", image), from_pillow(theirs.to_grayscale(to_pillow(image), 3)))
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert gap(one("grayscale", image), theirs.rgb_to_grayscale(image, 3)).mean() <= 1


@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.0])
def test_solarize_is_torchvisions(threshold):
    image = picture()
    assert torch.equal(one("solarize", image, threshold), functional().solarize(image, threshold * 256))


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5, 0.8, 1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_blur_is_torchvisions_with_a_long_kernel(sigma, channels):
    image = picture(c=channels)
    difference = gap(one("blur", image, sigma), functional().gaussian_blur(image, 31, sigma))
    assert difference.max() <= 1 and difference.mean() < 0.25


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_the_blur_is_pillows_within_a_level(sigma):
    from PIL import ImageFilter

    image = picture()
    assert (
        gap(one("blur", image, sigma), from_pillow(to_pillow(image).filter(ImageFilter.GaussianBlur(sigma)))).mean() < 1
    )


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 9), (9, 1), (2, 3), (5, 5)])
def test_a_blur_wider_than_the_picture_is_a_blur_of_the_picture(h, w):
    flat = torch.full((3, h, w), 130, dtype=torch.uint8)
    assert torch.equal(one("blur", flat, 2.0), flat)
    image = picture(40, 40)[:, 8 : 8 + h, 8 : 8 + w]
    assert one("blur", image, 2.0).float().std(correction=0) <= image.float().std(correction=0)


def test_gamma_is_torchvisions():
    for power in (0.8, 1.0, 1.25):
        difference = gap(one("gamma", picture(), power), functional().adjust_gamma(picture(), power))
        assert difference.max() <= 1 and difference.mean() < 0.25


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_any_number_of_bands_has_brightness_contrast_grey_blur_and_solarize(channels):
    image = picture(c=channels)
    steps = [("brightness", 0.7), ("contrast", 1.5), ("gamma", 0.9), ("blur", 1.0), ("solarize", 0.5)]
    each = torch.cat([operations.chain(image[i : i + 1], steps) for i in range(channels)])
    assert torch.equal(operations.chain(image, steps), each), "every band as if it were alone"
    grey = one("grayscale", image)
    assert gap(grey[0], image.float().mean(dim=0).round().to(torch.uint8)).max() == 0 and torch.equal(grey[0], grey[-1])


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_colour_of_other_than_rgb_is_an_error_that_says_so(channels, name):
    with pytest.raises(DataError, match=rf"{name} needs RGB images of 3 channels, these have {channels}"):
        one(name, picture(c=channels), 0.1)


def test_other_types_are_an_error():
    with pytest.raises(DataError, match=r"uint8 or uint16 \(c, h, w\), not torch.int32"):
        one("brightness", torch.zeros(3, 4, 4, dtype=torch.int32), 0.5)


def test_other_stains_are_those_of_the_equations_and_the_same_stains_change_nothing():
    image = picture()
    for pixels in (image, (image.to(torch.int32) * 257).to(torch.uint16)):
        same = one("stain", pixels, (1.0, 1.0, 1.0, 0.0, 0.0, 0.0))
        assert (same.int() - pixels.int()).abs().max() <= (0 if pixels.dtype == torch.uint8 else 1)
    scale, shift = np.array([1.2, 0.9, 1.1]), np.array([0.1, -0.05, 0.02])
    changed = one("stain", image, (*scale, *shift))
    density = -np.log(np.maximum(image.numpy().astype(np.float64), 0.5) / 255)
    amounts = np.einsum("chw,cs->shw", density, np.linalg.inv(operations.STAINS))
    again = np.einsum("shw,sc->chw", amounts * scale[:, None, None] + shift[:, None, None], operations.STAINS)
    assert np.abs(changed.numpy() - np.clip(255 * np.exp(-again), 0, 255)).max() <= 0.51


def test_stains_are_told_apart_as_scikit_image_does():
    color = pytest.importorskip("skimage.color")
    assert np.allclose(operations.STAINS, color.rgb_from_hed)
    amounts = np.random.default_rng(0).uniform(0.005, 0.03, (20, 20, 3))
    stained = [color.hed2rgb(amounts * factor) for factor in ([1, 1, 1], [1.5, 1, 1])]
    image = torch.from_numpy(stained[0]).permute(2, 0, 1).float()
    changed = one("stain", image, (1.5, 1.0, 1.0, 0.0, 0.0, 0.0))
    assert np.abs(changed.permute(1, 2, 0).numpy() - stained[1]).max() < 1e-5


def test_noise_has_its_deviation_and_is_its_seeds():
    image = torch.full((2, 200, 200), 30_000, dtype=torch.int32).to(torch.uint16)
    noisy = one("noise", image, (0.02, 7.0))
    assert noisy.float().std().item() == pytest.approx(0.02 * 65535, rel=0.02)
    assert noisy.float().mean().item() == pytest.approx(30_000, abs=20)
    assert torch.equal(noisy, one("noise", image, (0.02, 7.0))) and not torch.equal(
        noisy, one("noise", image, (0.02, 8.0))
    )
    assert not torch.equal(noisy[0], noisy[1]), "each band has its own"
    assert one("noise", picture(), (0.5, 1.0)).dtype == torch.uint8, "cut off at both ends"


def test_a_chain_is_its_operations_one_by_one_and_leaves_the_image_alone():
    image = picture().permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last, as a file is read
    before, steps = (
        image.clone(),
        [("hue", 0.1), ("contrast", 1.3), ("blur", 0.7), ("brightness", 0.8), ("saturation", 1.7)],
    )
    expected = image
    for name, value in steps:
        expected = one(name, expected, value)
    out = operations.chain(image, steps)
    assert torch.equal(out, expected) and out.is_contiguous() and out.dtype == torch.uint8
    assert torch.equal(image, before)


EACH = {"brightness": 1.3, "contrast": 0.6, "saturation": 1.5, "hue": 0.2, "gamma": 0.8, "grayscale": 1.0, "blur": 1.2}


@pytest.mark.parametrize(("name", "value"), [*EACH.items(), ("solarize", 0.5)])
def test_sixteen_bits_are_the_same_operation_at_257_times_the_levels(name, value):
    image = picture()
    deep = (image.to(torch.int32) * 257).to(torch.uint16)
    out = one(name, deep, value)
    assert out.dtype == torch.uint16
    assert (out.float() / 257 - one(name, image, value).float()).abs().max() <= 1.01
    fine = (picture(c=3).to(torch.int32) + 1000).to(torch.uint16)  # 256 levels that 8 bits would make one of
    assert len(one(name, fine, value).to(torch.int32).unique()) > 50


@pytest.mark.parametrize(
    ("name", "value"), [*EACH.items(), ("solarize", 0.5), ("noise", (0.1, 3.0)), ("stain", (1.2, 1, 0.9, 0, 0.1, 0))]
)
def test_floats_are_the_same_operation_within_eight_bits(name, value):
    image = picture()
    floats = one(name, image.float() / 255, value)
    assert floats.dtype == torch.float32 and floats.min() >= 0 and floats.max() <= 1
    off = (one(name, image, value).float() - 255 * floats).abs()
    off = off[:, image.amin(0) > 0]  # the darkest level of eight bits is no other's
    assert off.mean() < 1.001 and (name in ("hue", "solarize") or off.max() <= 2), (
        "eight bits are cut off to whole levels"
    )
    fine = torch.linspace(0.3, 0.31, 3 * 40 * 40).view(3, 40, 40)  # three levels of eight bits
    assert name in ("noise", "blur") or len(one(name, fine, value).unique()) > 100
