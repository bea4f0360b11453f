"""What `encode` says of images that are not what it reads."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ssl_core.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.pixels import normalize


class Network(nn.Module, ImageEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.config = BackboneConfig(backbone="resnet18", width=2, image_size=32)
        self.encoder = build_encoder(self.config)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network().eval()


def pixels(low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "given", ["a.png", np.zeros((2, 3, 32, 32), np.uint8), [pixels()], None], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("call", ["encode", "patch_features"])
def test_anything_but_a_tensor_is_a_type_error_that_names_embed(network, call, given):
    with pytest.raises(TypeError, match=f"not {type(given).__name__}: .* call `embed\\(method, images\\)`"):
        getattr(network, call)(given)


@pytest.mark.parametrize(
    ("floats", "said"),
    [
        (pixels().float(), r"far outside -2.1..2.6"),
        (pixels().float() - 128, "far outside"),
        (pixels().float() / 255, r"in 0..1"),
    ],
    ids=["0..255", "-128..127", "0..1"],
)
def test_floats_that_are_not_normalised_warn(network, floats, said):
    with pytest.warns(UserWarning, match=f"{said}.*give uint8 pixels"):
        network.encode(floats)


@pytest.mark.parametrize(
    "images", [pixels(), pixels(0, 1), pixels(255, 256), pixels(100, 200)], ids=["all", "black", "white", "grey"]
)
def test_normalised_floats_and_uint8_do_not_warn_and_agree(network, images):
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        a, b = network.encode(images), network.encode(normalize(images, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(a, b)


def test_a_network_can_be_exported_and_run_on_meta(network):
    images = torch.rand(1, 3, 32, 32)
    torch.export.export(network.encoder, (images,))
    assert network.normalized(images.to("meta")).is_meta
