"""The configuration and its presets."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_mae import MAE, MAEConfig
from ssl_mae.config import PRESETS, RECIPES, demo, vit_base


@pytest.mark.parametrize(("preset", "parameters"), [("vit_base", 111_907_840), ("vit_large", 329_541_888)])
def test_parameters_are_as_many_as_the_authors_models_have(preset, parameters):
    with torch.device("meta"):
        network = MAE(PRESETS["mae"][preset]())
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_base_preset_is_the_papers_recipe():
    config = vit_base()
    assert config == MAEConfig()
    assert (config.dim, config.depth, config.heads, config.patch_size, config.size) == (768, 12, 12, 16, (224, 224))
    assert (config.decoder_dim, config.decoder_depth, config.decoder_heads) == (512, 8, 16)
    assert (config.mask_ratio, config.kept, config.norm_pix_loss) == (0.75, 49, True)
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (800, 4096, 40)
    assert (config.base_lr, config.weight_decay, config.betas, config.clip_grad) == (1.5e-4, 0.05, (0.9, 0.95), None)
    assert (config.crop_scale, config.flip, config.min_lr) == ((0.2, 1.0), True, 0.0)


def test_the_huge_preset_cuts_patches_of_14():
    config = PRESETS["mae"]["vit_huge"]()
    assert (config.dim, config.depth, config.heads, config.patch_size, config.grid) == (1280, 32, 16, 14, (16, 16))


@pytest.mark.parametrize("name", PRESETS["mae"])
def test_a_preset_builds_says_where_it_stands_and_survives_json(name):
    config = PRESETS["mae"][name]()
    assert PRESETS["mae"][name].__name__ == name
    assert PRESETS["mae"][name].__doc__
    with torch.device("meta"):
        network = MAE(dataclasses.replace(config, depth=1, decoder_depth=1))
    assert network.encoder.pos_embed.shape == (1, 1 + config.patches, config.dim)
    assert 0 < config.kept < config.patches
    assert from_dict(MAEConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_the_demo_is_the_preset_of_the_built_in_pictures():
    assert RECIPES["mae"].presets is PRESETS["mae"] and PRESETS["mae"]["demo"] is demo
    assert demo().size == (32, 32)
    assert demo().precision == "fp32", "what it computes does not depend on the machine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio = 1.0: must be above 0 and below 1"),
        ({"mask_ratio": 0.0}, "mask_ratio = 0.0: must be above 0 and below 1"),
        ({"mask_ratio": 0.996}, "of 196 patches 0 would be seen: at least one must be, and one removed"),
        ({"mask_ratio": 1e-18}, "of 196 patches 196 would be seen"),
        ({"image_size": 16}, "of 1 patches 0 would be seen"),
        ({"image_size": 230}, "image_size = 230: must be divisible by the patch size 16"),
        ({"image_size": (224, 230)}, "must be divisible by the patch size 16"),
        ({"dim": 770, "heads": 10}, "dim = 770: sin-cos positions need a multiple of 4"),
        ({"decoder_dim": 0}, "decoder_dim = 0: must be at least 1"),
        ({"heads": 5}, "heads = 5: must divide the width 768"),
        ({"decoder_heads": 3}, "decoder_heads = 3: must divide the decoder's width 512"),
        ({"depth": 0}, "depth = 0: must be at least 1 and at most 1,000"),
        ({"decoder_depth": 1001}, "decoder_depth = 1001: must be at least 1 and at most 1,000"),
        ({"heads": -1}, "heads = -1: must be at least 1"),
        ({"in_channels": 0, "mean": (), "std": ()}, "in_channels = 0: must be at least 1"),
        ({"in_channels": 1}, "mean = .* needs one value per channel, 1 in all"),
        ({"mlp_ratio": 0.0}, "mlp_ratio = 0.0: must be above 0 and at most 1,000"),
        ({"mlp_ratio": 1e308}, r"mlp_ratio = 1e\+308: must be above 0 and at most 1,000"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps = 0.0: must be above 0"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale = \(0.5, 0.2\): must be rising"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale\[0\] = 0.0: must be above 0 and at most 1"),
        ({"warmup_epochs": 800}, "must be shorter than the run of 800 epochs"),
    ],
)
def test_a_config_that_cannot_work_names_its_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        MAEConfig(**fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_ration": 0.5}, "no field 'mask_ration'; did you mean 'mask_ratio'"),
        ({"depth": 12.0}, "depth = 12.0: expected int"),
        ({"norm_pix_loss": 1}, "norm_pix_loss = 1: expected bool"),
        ({"pool": "max"}, "pool = 'max'"),
        ({"betas": [0.9]}, "betas"),
        ({"image_size": "224"}, "image_size = '224'"),
    ],
)
def test_a_stored_config_is_read_strictly(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(MAEConfig, values)


def test_rounding_of_floats_is_the_authors():
    config = dataclasses.replace(vit_base(), image_size=160, mask_ratio=0.9)
    assert config.patches == 100
    assert config.kept == 9, "int(100 · (1 - 0.9)), where 1 - 0.9 is a little less than 0.1"
