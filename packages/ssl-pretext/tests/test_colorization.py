"""Colorization: the loss against plain Python, its weights and prior, colours that come back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ssl_core.config import ConfigError
from ssl_core.pixels import normalize
from ssl_pretext import Colorization, ColorizationConfig, colorization_loss, lab_to_rgb, rgb_to_lab
from ssl_pretext.ab_bins import rebalancing, smoothing, soft_encode

TINY = ColorizationConfig(backbone="resnet18", width=2, small_stem=True, image_size=16, hidden=8)


def method(**fields) -> Colorization:
    torch.manual_seed(0)
    return Colorization(replace(TINY, **fields))


def pixels(b: int = 2, s: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (b, 3, s, s), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def grey(b: int = 2) -> torch.Tensor:
    return pixels(b)[:, :1].expand(-1, 3, -1, -1)


def test_loss_equals_plain_python():
    generator = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(3, 6, generator=generator), torch.tensor([0.5, 0.0, 2.0])
    ids, soft = torch.tensor([[1, 4], [0, 2], [5, 3]]), torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.4, 0.6]])
    expected = 0.0
    for row, near, shares, w in zip(logits.tolist(), ids.tolist(), soft.tolist(), weight.tolist(), strict=True):
        total = math.log(sum(math.exp(x) for x in row))
        expected -= w * sum(z * (row[q] - total) for q, z in zip(near, shares, strict=True))
    assert colorization_loss(logits, ids, soft, weight).item() == pytest.approx(expected / 3, rel=1e-6)


def test_a_step_weighs_the_soft_classes_of_the_colours_by_the_prior():
    network = method().eval()
    with torch.no_grad():
        network.prior.copy_(torch.rand(261) ** 4)
        network.prior.div_(network.prior.sum())
    outputs = network({"views": [pixels()]}, 0.0)
    ab = rgb_to_lab(pixels())[:, 1:, 2::4, 2::4].permute(0, 2, 3, 1).reshape(-1, 2)
    ids, soft = soft_encode(ab, network.bins, 10)
    weight = rebalancing(network.prior @ smoothing(network.bins), 0.5)[ids[:, 0]]
    logits = network.logits(pixels()).reshape(-1, 261)
    assert outputs["loss"].item() == pytest.approx(colorization_loss(logits, ids, soft, weight).item(), rel=1e-5)
    assert outputs["accuracy"].item() == (logits.argmax(1) == ids[:, 0]).float().mean().item()


def test_at_first_every_colour_weighs_about_the_same():
    weight = method().weights()
    assert weight.min() > 0.8 and weight.max() < 1.7, "a uniform prior, but for the rim of the plane"
    assert torch.allclose(method(uniform=1.0).weights(), torch.ones(261), atol=1e-5)


def test_a_grey_image_has_no_loss_and_no_gradient():
    network = method()
    loss = network({"views": [grey()]}, 0.0)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in network.parameters())
    mixed = network({"views": [torch.cat([grey(1), pixels(1)])]}, 0.0)["loss"]
    assert mixed.item() > 0


def test_the_prior_moves_to_the_colours_that_were_seen():
    network = method(prior_momentum=0.9).train()
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, -1, 16, 16)
    before = network.prior.clone()
    network({"views": [red]}, 0.0)
    assert torch.equal(network.prior, before), "the prior moves before the step is done"
    network.after_step(0.0)
    q = int((network.bins == torch.tensor([80.0, 70.0])).all(1).nonzero())
    expected = 0.9 * before
    expected[q] += 0.1
    assert torch.allclose(network.prior, expected, atol=1e-7)
    assert network.prior.sum().item() == pytest.approx(1, abs=1e-5)
    assert network.weights()[q] < network.weights().median()


def test_grey_images_and_evaluation_leave_the_prior_alone():
    network = method().train()
    before = network.prior.clone()
    network({"views": [grey()]}, 0.0)
    network.after_step(0.0)
    assert torch.allclose(network.prior, before, atol=1e-9)
    network.eval()({"views": [pixels()]}, 0.0)
    network.after_step(0.0)
    assert torch.allclose(network.prior, before, atol=1e-9)


def test_the_encoder_sees_no_colour():
    network, images = method().eval(), pixels()
    lightness = network.lightness(images)
    other = torch.cat([lightness, -lab_of(images)[:, 1:] / 4], 1)
    assert torch.allclose(network.encode(lightness), network.encode(images), atol=1e-5)
    recoloured = normalize_float(lab_to_rgb(other))
    assert (network.lightness(recoloured) - lightness).abs().max() < 1, "not the same lightness: the test is void"
    assert torch.allclose(network.logits(recoloured), network.logits(network.lightness(recoloured)), atol=1e-4)


def lab_of(images: torch.Tensor) -> torch.Tensor:
    """Lab of dull versions of the images, which stay inside sRGB when their hues are turned."""
    return rgb_to_lab((images.float() / 255 - 0.5) / 4 + 0.5)


def normalize_float(rgb: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (TINY.mean, TINY.std))
    return (rgb - mean) / std


def test_all_ways_to_give_an_image_have_the_same_lightness():
    network, images = method(), pixels()
    lightness = rgb_to_lab(images)[:, :1]
    assert torch.allclose(network.lightness(images), lightness)
    assert torch.allclose(network.lightness(normalize(images, TINY.mean, TINY.std)), lightness, atol=1e-3)
    assert torch.equal(network.lightness(lightness), lightness)
    one = network.lightness(images[:, :1])
    assert torch.allclose(one, rgb_to_lab(images[:, :1].expand(-1, 3, -1, -1))[:, :1])


def test_a_picture_is_coloured_and_keeps_its_lightness():
    network = method().eval()
    rgb = network.colorize(pixels())
    assert rgb.shape == (2, 3, 16, 16) and 0 <= rgb.min() and rgb.max() <= 1
    dull = network.colorize(torch.full((1, 1, 16, 16), 50.0), temperature=10.0)
    assert (rgb_to_lab(dull)[:, :1] - 50).abs().max() < 1
    assert network.colorize(pixels()[:, :1]).shape == (2, 3, 16, 16)


def test_a_network_that_knows_the_colours_gives_them_back(monkeypatch):
    """One colour per picture, a cell's centre: predicted with certainty, the picture comes back."""
    network = method().eval()
    ab = torch.tensor([[20.0, 10.0], [-20.0, 30.0]])
    ids = (ab[:, None] == network.bins).all(2).nonzero()[:, 1]
    lab = torch.cat([torch.full((2, 1, 16, 16), 60.0), ab[:, :, None, None].expand(-1, -1, 16, 16)], 1)
    images = lab_to_rgb(lab)
    certain = 1e3 * torch.nn.functional.one_hot(ids, 261).float()
    monkeypatch.setattr(network, "logits", lambda images: certain[:, None, None].expand(-1, 4, 4, -1))
    assert torch.allclose(network.colorize(network.lightness(normalize_float(images))), images, atol=1e-4)


def test_regression_predicts_the_colours_themselves():
    network = method(target="regression").eval()
    ab = rgb_to_lab(pixels())[:, 1:, 2::4, 2::4].permute(0, 2, 3, 1)
    expected = 0.0
    for guess, truth in zip(network.logits(pixels()).flatten().tolist(), (ab / 110).flatten().tolist(), strict=True):
        gap = abs(guess - truth)
        expected += 0.5 * gap**2 if gap < 1 else gap - 0.5
    outputs = network({"views": [pixels()]}, 0.0)
    assert outputs.keys() == {"loss"}
    assert outputs["loss"].item() == pytest.approx(expected / ab.numel(), rel=1e-5)
    network.after_step(0.0)
    assert network.colorize(pixels()).shape == (2, 3, 16, 16)
    assert not {"bins", "prior"} & network.state_dict().keys()


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 24}, 6),
        ({"backbone": "resnet50", "width": 1, "small_stem": False, "image_size": 64}, 16),
        ({"backbone": "vit", "patch_size": 16, "image_size": 32, "dim": 8, "depth": 1, "heads": 1}, 8),
        ({"backbone": "vit", "patch_size": 4, "image_size": 16, "dim": 8, "depth": 1, "heads": 1}, 4),
        ({"backbone": "vit", "patch_size": 2, "image_size": 16, "dim": 8, "depth": 1, "heads": 1}, 8),
        ({"backbone": "vit", "patch_size": 14, "image_size": 28, "dim": 8, "depth": 1, "heads": 1}, 14),
    ],
)
def test_colours_are_predicted_at_every_fourth_pixel_where_the_map_allows(fields, size):
    config = replace(TINY, **fields)
    network = Colorization(config).eval()
    assert network.logits(pixels(1, config.size[0])).shape == (1, size, size, 261)
    assert torch.isfinite(network({"views": [pixels(1, config.size[0])]}, 0.0)["loss"])


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 2, 16, 16), (2, 4, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(b, 1, h, w\) or \(b, 3, h, w\), got \("):
        method().colorize(torch.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 1, "mean": (0.5,), "std": (0.5,)}, "in_channels = 1: colours are predicted of RGB images"),
        ({"image_size": 20}, "image_size = 20: must be divisible by 8"),
        ({"uniform": 0.0}, "uniform = 0.0"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"neighbours": 0}, "neighbours = 0"),
        ({"bin_size": 1.0}, "bin_size = 1.0"),
        ({"prior_momentum": 1.0}, "prior_momentum = 1.0"),
    ],
)
def test_a_config_that_cannot_work_names_its_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **fields)
