"""The presets are what their papers say."""

from __future__ import annotations

import json

import pytest

from ssl_beit import BEiTConfig
from ssl_beit.config import PRESETS, demo, vit_base
from ssl_beit.dvae import anneal
from ssl_core.config import from_dict, to_dict


def test_the_base_preset_is_the_papers_recipe():
    config = vit_base()
    assert config == BEiTConfig()
    assert (config.lr, config.min_lr, config.warmup_epochs) == (pytest.approx(1.5e-3), 1e-5, 10)
    assert (config.batch_size, config.epochs, config.weight_decay, config.clip_grad) == (2048, 800, 0.05, 3.0)
    assert (config.mask_patches, config.mask_block, config.drop_path, config.layer_scale) == (75, 16, 0.1, 0.1)
    assert (config.tokenizer_size, config.vocab) == ((112, 112), 8192)
    assert PRESETS["beit"]["vit_large"]().layer_scale == 1e-5


@pytest.mark.parametrize("presets", [PRESETS["beit"], PRESETS["dvae"]])
def test_presets_survive_json_and_say_where_they_stand(presets):
    for make in presets.values():
        config = make()
        assert make.__doc__
        assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", PRESETS["beit"])
def test_a_presets_tokenizer_is_the_one_that_it_names(name):
    config = PRESETS["beit"][name]()
    assert config.tokenizer is not None
    tokenizer = PRESETS["dvae"][config.tokenizer]()
    sizes = (tokenizer.hidden, tokenizer.blocks, tokenizer.decoder_init, tokenizer.vocab)
    assert (config.tokenizer_hidden, config.tokenizer_blocks, config.tokenizer_init, config.vocab) == sizes


def test_the_demo_has_the_built_in_pictures_size():
    assert demo().size == (32, 32) and demo().tokenizer_size == PRESETS["dvae"]["demo"]().size


def test_schedules_are_those_of_the_paper():
    config, updates = PRESETS["dvae"]["dalle"](), 3_000_000

    def temperature(step: int) -> float:
        return anneal(step / updates, 1.0, config.temperature, config.temperature_decay)

    def weight(step: int) -> float:
        return anneal(step / updates, 0.0, config.kl_weight, config.kl_warmup)

    assert [temperature(step) for step in (0, 75_000, 150_000, 2_999_999)] == pytest.approx(
        [1, 17 / 32, 1 / 16, 1 / 16]
    )
    assert [weight(step) for step in (0, 2_500, 5_000, 2_999_999)] == pytest.approx([0, 3.3, 6.6, 6.6])
    assert config.lr == pytest.approx(1e-4)
    assert (config.batch_size, config.weight_decay, config.betas, config.ema) == (512, 1e-4, (0.9, 0.999), 0.999)
