"""The configuration and its presets."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ssl_core.config import from_dict, to_dict
from ssl_dino import DINO, DINOConfig, DINOv2, DINOv2Config
from ssl_dino.config import PRESETS, RECIPES, vit_small
from ssl_dino.verbs import VERBS
from ssl_train.cli.main import main


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("vits14", 22_056_576), ("vitb14", 86_580_480), ("vitl14", 304_368_640), ("vitg14", 1_136_480_768)],
)
def test_dinov2_has_as_many_parameters_as_the_authors_models(preset, parameters):
    with torch.device("meta"):
        network = DINOv2(PRESETS["dinov2"][preset]())
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_default_is_the_authors_run_of_vit_small():
    config = vit_small()
    assert config == DINOConfig()
    with torch.device("meta"):
        network = DINO(config)
    assert sum(p.numel() for p in network.teacher.backbone.parameters()) == 21_665_664
    assert sum(p.numel() for p in network.teacher.head.parameters()) == 22_352_128
    assert (config.epochs, config.batch_size, config.global_crops, config.local_crops) == (100, 1024, 2, 8)
    assert (config.student_temp, config.teacher_temp, config.center_momentum) == (0.1, 0.04, 0.9)
    assert (config.teacher_momentum, config.freeze_last_layer, config.drop_path) == (0.996, 1, 0.1)
    assert (config.betas, config.clip_grad, config.pos_interp, config.layer_norm_eps) == (
        (0.9, 0.999),
        None,
        "offset",
        1e-6,
    )
    assert config.norm_last_layer and not PRESETS["dino"]["vit_small_300"]().norm_last_layer


def test_resnet50_is_the_run_that_the_authors_advise_for_convnets():
    config = PRESETS["dino"]["resnet50"]()
    assert (config.optimizer, config.base_lr, config.momentum, config.epochs) == ("sgd", 0.03, 0.9, 100)
    assert (config.weight_decay, config.weight_decay_end) == (1e-4, None)
    assert (config.global_scale, config.local_scale) == ((0.14, 1.0), (0.05, 0.14))
    assert config.norm_last_layer and config.teacher_temp == 0.04


@pytest.mark.parametrize("name", PRESETS["dino"])
def test_a_preset_builds_says_where_it_stands_and_survives_json(name):
    config = PRESETS["dino"][name]()
    assert PRESETS["dino"][name].__name__ == name and PRESETS["dino"][name].__doc__
    with torch.device("meta"):
        network = DINO(dataclasses.replace(config, depth=1))
    assert network.center.shape == (1, config.prototypes)
    assert from_dict(DINOConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", PRESETS["dinov2"])
def test_an_encoders_preset_survives_json(name):
    config = PRESETS["dinov2"][name]()
    assert from_dict(DINOv2Config, json.loads(json.dumps(to_dict(config)))) == config


def test_dinov2_is_described_and_not_trained(capsys):
    assert main(RECIPES, ["info", "--method", "dinov2", "--preset", "vits14"], verbs=VERBS) == 0
    assert "dinov2: 22,056,576 parameters" in capsys.readouterr().out
    assert main(RECIPES, ["train", "--method", "dinov2"], verbs=VERBS) == 2
    assert "dinov2 is an encoder that is used as it is: it cannot be trained here" in capsys.readouterr().err


def test_the_cost_of_a_run_is_told_before_it(capsys):
    assert main(RECIPES, ["info", "--preset", "small_data", "--device", "cpu"], verbs=VERBS) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("dino: ") and "GFLOPs forward per sample" in shown
