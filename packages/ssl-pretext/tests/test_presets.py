"""The presets are fact sheets: what they say of the published recipes, and that they build."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_core.method import load
from ssl_pretext.config import PRESETS, RECIPES, ColorizationConfig, JigsawConfig, RelativePatchConfig, RotationConfig

NAMES = [(recipe, preset) for recipe, presets in PRESETS.items() for preset in presets]


@pytest.mark.parametrize(("recipe", "name"), NAMES)
def test_a_preset_builds_says_where_it_stands_and_survives_json(recipe, name):
    preset, recipe = PRESETS[recipe][name], RECIPES[recipe]
    config = preset()
    assert type(config) is load(recipe.config)
    assert preset.__doc__ and ("Not run here" in preset.__doc__ or "docs/benchmarks.md" in preset.__doc__)
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
    with torch.device("meta"):
        network = load(recipe.method)(config)
    assert isinstance(network, load(recipe.method))


def test_there_are_four_methods_and_each_has_a_demo_in_fp32():
    assert [*RECIPES] == ["rotation", "jigsaw", "colorization", "relative-patch"]
    for name, presets in PRESETS.items():
        demo = presets["demo"]()
        assert demo.size == ((48, 48) if name in ("jigsaw", "relative-patch") else (32, 32))
        assert demo.precision == "fp32", "what it computes does not depend on the machine"


GOYAL = {"backbone": "resnet50", "size": (224, 224), "epochs": 105, "batch_size": 256}
GOYAL |= {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
PUBLISHED = {
    # Goyal et al. 2019 (arXiv 1905.01235), in VISSL's configs
    RotationConfig: GOYAL,
    JigsawConfig: GOYAL
    | {"puzzle_size": 255, "cell": 85, "tile_size": 64, "grayscale": 0.66}
    | {"permutations": 100, "embedding": 1000, "hidden": 4096, "dropout": 0.5},
    # Zhang et al. 2016 (arXiv 1603.08511) and their code
    ColorizationConfig: GOYAL
    | {"target": "bins", "bin_size": 10.0, "neighbours": 10, "uniform": 0.5, "temperature": 0.38}
    | {"color_stride": 4, "cell": 32},
    RelativePatchConfig: GOYAL,
}


@pytest.mark.parametrize("cls", PUBLISHED)
def test_the_defaults_are_the_published_recipe_for_resnet50(cls):
    config = cls()
    assert {field: getattr(config, field) for field in PUBLISHED[cls]} == PUBLISHED[cls]


def test_the_encoder_of_a_colorization_sees_one_channel():
    config = ColorizationConfig()
    assert replace(config, small_stem=True).cell == 8
    assert (config.encoder.in_channels, config.encoder.mean, config.encoder.std) == (1, (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("rotation", 23_508_032 + 2048 * 4 + 4),
        ("relative-patch", 23_508_032 + 2048 * 1000 + 2000 + 2000 * 4096 + 8192 + 4097 * 8),
    ],
)
def test_a_resnet50_has_as_many_parameters_as_the_published_one_and_its_head(name, parameters):
    with torch.device("meta"):
        network = load(RECIPES[name].method)(PRESETS[name]["resnet50"]())
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("cls", [RotationConfig, JigsawConfig, ColorizationConfig, RelativePatchConfig])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": (224, 192)}, "must be a square"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale\[0\] = 0.0: must be above 0 and at most 1"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"warmup_epochs": 105}, "must be shorter than the run"),
    ],
)
def test_a_config_that_cannot_work_names_its_field(cls, fields, message):
    with pytest.raises(ConfigError, match=message):
        cls(**fields)
