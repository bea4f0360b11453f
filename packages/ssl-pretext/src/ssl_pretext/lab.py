"""CIE Lab and sRGB in torch: white D65 of the 2 degree observer, as scikit-image has them.

sRGB (IEC 61966-2-1) to linear light to XYZ to Lab, where equal distances look about equally
different:

    L = 116·f(Y) - 16    a = 500·(f(X) - f(Y))    b = 200·(f(Y) - f(Z))
    f(t) = ∛t, or 7.787·t + 16/116 below .008856

L is 0 … 100; over all of sRGB a is -86.18 … 98.23 and b -107.86 … 94.48.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_core.pixels import as_float

XYZ_OF_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear sRGB to XYZ."""
RGB_OF_XYZ = tuple(torch.linalg.inv(torch.tensor(XYZ_OF_RGB, dtype=torch.float64, device="cpu")).tolist())
WHITE = (0.95047, 1.0, 1.08883)
"""XYZ of D65."""
LINEAR_BELOW, SLOPE, OFFSET = 0.008856, 7.787, 16 / 116


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB (b, 3, h, w) to Lab (b, 3, h, w).

    Images are uint8 or uint16, or float in [0, 1], whose dtype is kept. Raises ValueError for other
    shapes.
    """
    _check(images)
    rgb = as_float(images)

    # Each branch is clamped to its own range, so that the gradient of the other one stays finite.
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)

    # The matrix is divided by white, so that white has f = 1 in all three.
    xyz = _mixed(linear, [[m / white for m in row] for row, white in zip(XYZ_OF_RGB, WHITE, strict=True)])
    f = torch.where(xyz > LINEAR_BELOW, xyz.clamp(min=LINEAR_BELOW) ** (1 / 3), SLOPE * xyz + OFFSET)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Lab (b, 3, h, w) to sRGB (b, 3, h, w) in [0, 1]. Raises ValueError for other shapes.

    Colours that a screen cannot show are clipped.
    """
    _check(lab)
    lightness, a, b = lab.unbind(1)  # b h w each
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)], 1)
    cubed = torch.where(f > LINEAR_BELOW ** (1 / 3), f**3, (f - OFFSET) / SLOPE)
    linear = _mixed(cubed, [[m * white for m, white in zip(row, WHITE, strict=True)] for row in RGB_OF_XYZ])
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0, 1)


def _mixed(x: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """A 3 x 3 matrix times the channels. Written as sums, because autocast would take a matrix
    product to half precision."""
    one, two, three = x.unbind(1)
    return torch.stack([a * one + b * two + c * three for a, b, c in matrix], 1)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"colours must be (b, 3, h, w), got {tuple(images.shape)}")
