"""Patches and their positions, against loops in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_core.patches import (
    grid_of,
    interpolate_positions,
    patchify,
    sincos_positions,
    square_grid,
    take_tokens,
    unpatchify,
)


def images(c: int, h: int, w: int, b: int = 2) -> torch.Tensor:
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width", "p"), [(8, 8, 4), (12, 8, 4), (6, 15, 3), (5, 7, 1)])
def test_unpatchify_undoes_patchify_exactly(channels, height, width, p):
    x = images(channels, height, width)
    patches = patchify(x, p)
    assert patches.shape == (2, (height // p) * (width // p), p * p * channels)
    assert torch.equal(unpatchify(patches, p, (height // p, width // p)), x)


def test_a_patch_vector_runs_over_row_column_and_channel_with_the_channel_fastest():
    x, p = images(3, 6, 4), 2
    patches = patchify(x, p)
    assert torch.equal(patches[:, 0, :3], x[:, :, 0, 0]), "it starts with the channels of pixel (0, 0)"
    for row in range(6):
        for column in range(4):
            n = (row // p) * (4 // p) + column // p
            for c in range(3):
                d = ((row % p) * p + column % p) * 3 + c
                assert torch.equal(patches[:, n, d], x[:, c, row, column])


@pytest.mark.parametrize(
    ("h", "w", "nearest"), [(30, 32, "32x32"), (64, 35, "64x32"), (3, 16, "16x16"), (41, 8, "48x16")]
)
def test_a_side_that_the_patch_does_not_divide_is_refused_with_the_nearest_size(h, w, nearest):
    with pytest.raises(ValueError, match=f"{h}x{w} is not divisible by the patch size 16: resize to {nearest}"):
        grid_of(torch.empty(1, 3, h, w), 16)
    with pytest.raises(ValueError, match="not divisible"):
        patchify(torch.empty(1, 3, h, w), 16)


def test_grid_is_rows_by_columns():
    assert grid_of(torch.empty(1, 3, 32, 48), 16) == (2, 3)


@pytest.mark.parametrize("shape", [(1, 5, 12), (1, 6, 11)])
def test_unpatchify_refuses_patches_that_do_not_fill_the_grid(shape):
    with pytest.raises(ValueError, match="do not fit a 2x3 grid of 2-pixel patches"):
        unpatchify(torch.zeros(shape), 2, (2, 3))


def test_take_tokens_follows_the_index_of_each_sample():
    x = torch.arange(2 * 4 * 3).view(2, 4, 3)
    taken = take_tokens(x, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(taken, torch.stack([x[0, [3, 0]], x[1, [1, 1]]]))


def test_sincos_positions_equal_the_formula_of_every_entry():
    dim, grid = 12, (2, 3)
    positions = sincos_positions(grid, dim)
    assert positions.shape == (1, 1 + 6, dim)
    assert positions.dtype == torch.float32
    assert torch.equal(positions[0, 0], torch.zeros(dim)), "CLS has no position"
    for row in range(2):
        for column in range(3):
            expected = []
            for place in (column, row):
                angles = [place * 10000 ** (-i / (dim / 4)) for i in range(dim // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert positions[0, 1 + row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_sincos_rows_have_half_the_width_as_squared_norm():
    norms = sincos_positions((14, 14), 768)[0].square().sum(-1)
    assert norms[0] == 0
    assert torch.allclose(norms[1:], torch.full((196,), 384.0), atol=1e-3)


def test_first_half_of_a_position_depends_on_the_column_alone_and_second_half_on_the_row():
    positions = sincos_positions((5, 7), 16, cls=False).view(5, 7, 16)
    assert torch.equal(positions[..., :8], positions[:1, :, :8].expand(5, -1, -1))
    assert torch.equal(positions[..., 8:], positions[:, :1, 8:].expand(-1, 7, -1))
    assert len(positions.view(35, 16).unique(dim=0)) == 35


def test_sincos_positions_need_a_width_divisible_by_four():
    with pytest.raises(ValueError, match="divisible by 4, got 10"):
        sincos_positions((2, 2), 10)


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, which bicubic resampling in torch uses."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resampled(grid: list[list[float]], new: tuple[int, int], scale: tuple[float, float]) -> list[float]:
    """Bicubic resampling of numbers, pixel centres at half integers, edges repeated; `scale` is new
    over old."""
    h, w = len(grid), len(grid[0])
    out = []
    for row in range(new[0]):
        for column in range(new[1]):
            y, x = (row + 0.5) / scale[0] - 0.5, (column + 0.5) / scale[1] - 0.5
            total = 0.0
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = grid[min(max(i, 0), h - 1)][min(max(j, 0), w - 1)]
                    total += value * cubic(y - i) * cubic(x - j)
            out.append(total)
    return out


@pytest.mark.parametrize(("how", "offset"), [("size", 0.0), ("offset", 0.1)])
@pytest.mark.parametrize("new", [(3, 4), (7, 5), (5, 9)])
def test_interpolation_equals_bicubic_resampling_in_plain_python(how, offset, new):
    old = (5, 6)
    positions = torch.randn(1, 31, 2, generator=torch.Generator().manual_seed(1))
    result = interpolate_positions(positions, old, new, how)
    assert torch.equal(result[:, :1], positions[:, :1])
    scale = ((new[0] + offset) / old[0], (new[1] + offset) / old[1])
    for d in range(2):
        expected = resampled(positions[0, 1:, d].view(old).tolist(), new, scale)
        assert result[0, 1:, d].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("how", ["offset", "size", "antialias"])
def test_interpolation_to_the_same_grid_changes_nothing(how):
    positions = sincos_positions((4, 6), 8)
    assert interpolate_positions(positions, (4, 6), (4, 6), how) is positions


@pytest.mark.parametrize("n", [39, 43, 78, 86, 115, 123])
def test_the_offset_convention_reaches_sizes_that_a_bare_scale_factor_misses(n):
    bare = torch.nn.functional.interpolate(torch.zeros(1, 1, 37, 37), scale_factor=n / 37, mode="bicubic")
    assert bare.shape[-1] == n - 1
    assert interpolate_positions(torch.zeros(1, 1 + 37 * 37, 4), (37, 37), (n, n), "offset").shape == (1, 1 + n * n, 4)


@pytest.mark.parametrize(
    ("old", "new", "random_gaps", "smooth_gaps"),
    [(37, 16, (0.299, 0.818), (0.042, 0.070)), (14, 6, (0.280, 0.823), (0.043, 0.070))],
)
def test_the_three_conventions_differ_by_what_was_measured(old, new, random_gaps, smooth_gaps):
    random = torch.randn(1, 1 + old * old, 64, generator=torch.Generator().manual_seed(0))
    for positions, gaps in ((random, random_gaps), (sincos_positions((old, old), 64), smooth_gaps)):
        by = {
            how: interpolate_positions(positions, (old, old), (new, new), how)[:, 1:]
            for how in ("offset", "size", "antialias")
        }
        for how, gap in zip(("size", "antialias"), gaps, strict=True):
            assert ((by[how] - by["offset"]).norm() / by["offset"].norm()).item() == pytest.approx(gap, rel=0.05)


def test_interpolation_computes_in_float32_and_keeps_the_dtype_and_every_prefix_row():
    positions = sincos_positions((8, 8), 16, cls=False)
    positions = torch.cat([torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2)), positions], 1)
    exact = interpolate_positions(positions, (8, 8), (6, 10), "size", prefix=5)
    half = interpolate_positions(positions.bfloat16(), (8, 8), (6, 10), "size", prefix=5)
    assert exact.shape == half.shape == (1, 65, 16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half[:, :5], positions[:, :5].bfloat16())
    rounded_once = interpolate_positions(positions.bfloat16().float(), (8, 8), (6, 10), "size", prefix=5)
    assert torch.equal(half, rounded_once.bfloat16())


def test_only_square_numbers_have_a_square_grid():
    assert square_grid(196) == (14, 14)
    with pytest.raises(ValueError, match="195 patches do not form a square grid"):
        square_grid(195)
