"""The encoder of DINOv2: its gated MLP and its number of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ssl_dino.config import DINOv2Config
from ssl_dino.dinov2 import DINOv2, SwiGLU
from ssl_testing.formats import check_released


def test_the_giant_has_as_many_parameters_as_published():
    giant = DINOv2Config(image_size=518, patch_size=14, dim=1536, depth=40, heads=24, swiglu=True)
    with torch.device("meta"):
        encoder = DINOv2(giant).encoder
    assert isinstance(encoder.blocks[0].mlp, SwiGLU)
    assert sum(p.numel() for p in encoder.parameters()) == 1_136_479_232


@pytest.mark.parametrize(("dim", "hidden"), [(384, 1024), (768, 2048), (1024, 2736), (1536, 4096)])
def test_swiglu_is_as_wide_as_in_the_authors_weights(dim, hidden):
    with torch.device("meta"):
        mlp = SwiGLU(dim=dim, hidden=4 * dim)
    assert mlp.w12.weight.shape == (2 * hidden, dim)
    assert mlp.w3.weight.shape == (dim, hidden)


def test_swiglu_gates_the_second_half_by_the_first():
    torch.manual_seed(0)
    mlp, x = SwiGLU(dim=6, hidden=24), torch.randn(4, 6)
    first, second = (
        F.linear(x, mlp.w12.weight[:16], mlp.w12.bias[:16]),
        F.linear(x, mlp.w12.weight[16:], mlp.w12.bias[16:]),
    )
    expected = F.linear(first * torch.sigmoid(first) * second, mlp.w3.weight, mlp.w3.bias)
    assert torch.allclose(mlp(x), expected, atol=1e-5)


def test_folders_of_every_released_format_load():
    torch.manual_seed(0)
    method = DINOv2(DINOv2Config(image_size=8, patch_size=4, dim=16, depth=1, heads=2, registers=1, swiglu=True))
    inputs = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    check_released(Path(__file__).parent / "formats", "dinov2", method, inputs)
