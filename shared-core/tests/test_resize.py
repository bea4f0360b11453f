"""The first convolution and the pixel predictor for another number of channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_core.hub.resize import adapt_head, adapt_stem


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_one_channel_equals_the_rgb_network_on_that_channel_repeated():
    rgb, grey = weight(8, 3, 4, 4).double(), weight(2, 1, 12, 12).double()
    summed = adapt_stem(rgb, 1)
    assert summed.shape == (8, 1, 4, 4)
    repeated = F.conv2d(grey.expand(-1, 3, -1, -1), rgb, stride=4)
    assert torch.allclose(F.conv2d(grey, summed, stride=4), repeated, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(3, 4), (3, 13), (1, 3), (4, 6)])
def test_more_channels_keep_the_old_bands_fill_with_their_mean_and_keep_the_activation(old, new):
    before = weight(8, old, 4, 4)
    after = adapt_stem(before, new)
    assert after.shape == (8, new, 4, 4)
    scale = new / old
    assert torch.allclose(after[:, :old] * scale, before, atol=1e-6)
    assert torch.allclose(after[:, old:] * scale, before.mean(1, keepdim=True).expand(-1, new - old, -1, -1), atol=1e-6)
    constant = torch.full((1, 1, 4, 4), 0.7)
    activation = F.conv2d(constant.expand(-1, old, -1, -1), before)
    assert torch.allclose(F.conv2d(constant.expand(-1, new, -1, -1), after), activation, atol=1e-5)


def test_fewer_channels_take_the_first_ones():
    before = weight(8, 4, 2, 2)
    assert torch.allclose(adapt_stem(before, 2), before[:, :2] * 2)


def test_the_same_number_of_channels_changes_nothing():
    before = weight(8, 3, 2, 2)
    assert torch.equal(adapt_stem(before, 3), before)
    assert torch.equal(adapt_head(weight(12, 5), 3, 3), weight(12, 5))


def test_adapting_leaves_the_old_weights_alone():
    before, head = weight(8, 3, 2, 2), weight(12, 5)
    for new in (1, 2, 5):
        adapt_stem(before, new).add_(1)
        adapt_head(head, 3, new).add_(1)
    assert torch.equal(before, weight(8, 3, 2, 2))
    assert torch.equal(head, weight(12, 5))


@pytest.mark.parametrize("shape", [(2 * 2 * 3, 5), (2 * 2 * 3,)])
def test_a_pixel_predictor_for_one_channel_says_the_mean_of_the_colours(shape):
    head = weight(*shape)
    grey = adapt_head(head, 3, 1)
    assert grey.shape == (4, *shape[1:])
    for pixel in range(4):
        assert torch.allclose(grey[pixel], head[3 * pixel : 3 * pixel + 3].mean(0))


def test_a_pixel_predictor_for_more_channels_keeps_its_own_and_adds_their_mean():
    head = weight(2 * 2 * 3, 5)
    wide = adapt_head(head, 3, 5)
    assert wide.shape == (20, 5)
    for pixel in range(4):
        assert torch.equal(wide[5 * pixel : 5 * pixel + 3], head[3 * pixel : 3 * pixel + 3])
        assert torch.allclose(
            wide[5 * pixel + 3 : 5 * pixel + 5], head[3 * pixel : 3 * pixel + 3].mean(0).expand(2, -1)
        )
    assert torch.equal(adapt_head(head, 3, 2), head.view(4, 3, 5)[:, :2].reshape(8, 5))
