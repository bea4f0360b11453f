"""Lab against scikit-image, and there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from ssl_pretext import lab_to_rgb, rgb_to_lab


def colours(n: int = 40) -> torch.Tensor:
    """Random sRGB (2, 3, n, n) float64 in [0, 1], with black, white and both parts of the curve."""
    x = torch.rand(2, 3, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, :4] = torch.tensor([0.0, 1.0, 0.0404, 0.003], dtype=torch.float64)
    return x


def last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def test_lab_equals_scikit_image():
    assert np.abs(last(rgb_to_lab(colours())) - rgb2lab(last(colours()))).max() < 1e-11


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_rgb_of_any_lab_equals_scikit_image_cut_to_what_a_screen_shows():
    low, high = torch.tensor([0.0, -110, -110]), torch.tensor([100.0, 110, 110])
    lab = colours() * (high - low).double()[:, None, None] + low.double()[:, None, None]
    assert np.abs(last(lab_to_rgb(lab)) - lab2rgb(last(lab))).max() < 1e-12


def test_there_and_back_is_exact():
    assert (lab_to_rgb(rgb_to_lab(colours())) - colours()).abs().max() < 1e-12
    single = colours().float()
    assert (lab_to_rgb(rgb_to_lab(single)) - single).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (100, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_reference_colours(rgb, lab):
    found = rgb_to_lab(torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    assert found.tolist() == pytest.approx(lab, abs=0.01)


def test_a_grey_picture_has_no_colour():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1)
    assert rgb_to_lab(grey)[:, 1:].abs().max() < 0.02


def test_the_gradient_is_finite_at_black_and_white():
    x = torch.tensor([0.0, 1.0, 0.0031308, 0.04045]).view(1, 1, 2, 2).repeat(1, 3, 1, 1).requires_grad_()
    lab_to_rgb(rgb_to_lab(x)).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_autocast_does_not_touch_colours():
    x = colours().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(x), rgb_to_lab(x.clone()))
        inside = rgb_to_lab(x)
    assert inside.dtype == torch.float32 and torch.equal(inside, rgb_to_lab(x))


@pytest.mark.parametrize("convert", [rgb_to_lab, lab_to_rgb])
@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 3), (1, 1, 4, 4)])
def test_other_shapes_are_refused(convert, shape):
    with pytest.raises(ValueError, match=r"colours must be \(b, 3, h, w\)"):
        convert(torch.rand(shape))
