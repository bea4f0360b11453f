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


AUTHORS = {
    # the defaults of the authors' main_dino.py, for ViT-S/16
    "vit_small": {"epochs": 100, "batch_size": 1024, "global_crops": 2, "local_crops": 8, "drop_path": 0.1}
    | {"student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9, "teacher_momentum": 0.996}
    | {"freeze_last_layer": 1, "norm_last_layer": True, "betas": (0.9, 0.999), "clip_grad": None}
    | {"pos_interp": "offset", "layer_norm_eps": 1e-6},
    # what their README changes for 300 epochs
    "vit_small_300": {"epochs": 300, "teacher_temp": 0.07, "norm_last_layer": False},
    # what their README advises for convnets
    "resnet50": {"optimizer": "sgd", "base_lr": 0.03, "momentum": 0.9, "epochs": 100, "weight_decay": 1e-4}
    | {"weight_decay_end": None, "global_scale": (0.14, 1.0), "local_scale": (0.05, 0.14)}
    | {"norm_last_layer": True, "teacher_temp": 0.04},
}


@pytest.mark.parametrize("name", AUTHORS)
def test_a_preset_has_the_authors_values(name):
    config = PRESETS["dino"][name]()
    assert {field: getattr(config, field) for field in AUTHORS[name]} == AUTHORS[name]


def test_the_default_has_as_many_parameters_as_the_authors_vit_small():
    assert vit_small() == DINOConfig()
    with torch.device("meta"):
        network = DINO(vit_small())
    assert sum(p.numel() for p in network.teacher.backbone.parameters()) == 21_665_664
    assert sum(p.numel() for p in network.teacher.head.parameters()) == 22_352_128


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
