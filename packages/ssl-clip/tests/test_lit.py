"""A text tower that learns on an image tower of others."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ssl_clip import CLIP, train
from ssl_core.config import ConfigError
from ssl_core.hub.layout import WeightsMismatch
from ssl_core.hub.weights_file import WeightsError, write_sums


@pytest.fixture
def encoder(tmp_path):
    """A ViT of transformers in a folder, and itself."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    image = {"image_size": 16, "patch_size": 8}
    width = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ViTConfig(**image, **width, layer_norm_eps=1e-6)
    vit = transformers.ViTModel(config, add_pooling_layer=False).eval()
    vit.save_pretrained(tmp_path / "vit")
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(statistics))
    return vit


@pytest.mark.parametrize("lock", [True, False])
def test_a_text_tower_learns_on_an_encoder_of_others(lock, encoder, tmp_path, write_pairs, trainable, options):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    config = dataclasses.replace(trainable, init_image=str(tmp_path / "vit"), lock_image=lock)
    clip = train(config, data, tmp_path / "run", options=options).model
    assert (clip.config.tower, clip.config.dim, clip.config.mean) == ("vit", 24, (0.4, 0.5, 0.6))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = encoder(images).last_hidden_state[:, 0]
        assert torch.allclose(clip.encode(images), expected, atol=1e-5) == lock
    again = CLIP.from_pretrained(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(again.encode_image(images), clip.encode_image(images))
        assert torch.equal(again.encode_text("a red patch"), clip.encode_text("a red patch"))
    again = train(config, data, tmp_path / "run", options=options).model
    assert again.config == clip.config, "the same command goes on"


def test_a_folder_that_is_no_vit_is_refused(encoder, tmp_path, write_pairs, trainable, options):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no ViT's folder: config.json has no 'hidden_size'"):
        train(
            dataclasses.replace(trainable, init_image=str(tmp_path / "other")), data, tmp_path / "no", options=options
        )
    values = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    with pytest.raises(WeightsMismatch, match="is no plain ViT"):
        train(dataclasses.replace(trainable, init_image=str(tmp_path / "vit")), data, tmp_path / "no2", options=options)


def test_an_image_tower_that_is_not_what_its_checksum_says_is_refused(
    encoder, tmp_path, write_pairs, trainable, options
):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    write_sums(tmp_path / "vit", ["model.safetensors"])
    file = tmp_path / "vit" / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(WeightsError, match="has changed since it was published"):
        train(dataclasses.replace(trainable, init_image=str(tmp_path / "vit")), data, tmp_path / "no", options=options)
