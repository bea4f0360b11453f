"""The loss against plain Python, the encoder against transformers, and the picture."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from ssl_core.config import ConfigError
from ssl_template import RotNet, RotNetConfig, four_rotations, rotation_loss
from ssl_template.config import demo
from ssl_template.show import show
from ssl_train.data.sources import open_source


def test_four_rotations_are_quarter_turns_in_order():
    image = torch.arange(9).view(1, 1, 3, 3)
    turned = four_rotations(image)
    assert turned.shape == (4, 1, 3, 3)
    assert turned[:, 0, 0].tolist() == [[0, 1, 2], [2, 5, 8], [8, 7, 6], [6, 3, 0]]


def test_loss_is_the_cross_entropy_of_the_turn():
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row, turn in zip(logits.tolist(), [0, 0, 1, 1, 2, 2, 3, 3], strict=True):
        expected += math.log(sum(math.exp(x) for x in row)) - row[turn]
    assert rotation_loss(logits).item() == pytest.approx(expected / 8, rel=1e-5)


def test_oblong_images_are_refused():
    with pytest.raises(ConfigError, match="needs a square"):
        RotNetConfig(image_size=(32, 64), patch_size=8)


def test_the_picture_shows_every_rotation(tmp_path):
    method = RotNet(demo()).eval()
    with torch.inference_mode():
        captions = show(method, open_source(), tmp_path)
    assert list(captions) == ["rotations.png"]
    with Image.open(tmp_path / "rotations.png") as sheet:
        assert sheet.size == (4 * 102 + 18, 8 * 102)


def test_transformers_vit_has_the_same_features(tmp_path):
    transformers = pytest.importorskip("transformers")
    method = RotNet(demo()).eval()
    theirs, report = transformers.ViTModel.from_pretrained(method.save_pretrained(tmp_path), output_loading_info=True)
    assert {key.split(".")[0] for key in report["missing_keys"]} <= {"pooler"}
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = theirs.eval()(images).last_hidden_state[:, 1:].mean(1)
        assert torch.allclose(features, method.encode(images), atol=1e-5)
