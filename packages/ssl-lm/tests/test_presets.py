"""The presets have the sizes that their papers publish."""

from __future__ import annotations

import pytest
import torch

from ssl_core.config import ConfigError
from ssl_core.method import load
from ssl_lm.config import PRESETS, RECIPES

PARAMETERS = [
    ("gpt", "gpt2", 124_439_808),  # the released weights' own count
    ("bert", "base", 109_514_298),  # 110 M in the paper, section 3
    ("bert", "large", 335_174_458),  # 340 M
    ("t5", "small", 60_506_624),  # 60 M in the paper, section 3.7
    ("t5", "base", 222_903_552),  # 220 M
    ("t5", "v1_1_small", 76_961_152),  # 77 M in the authors' release
    ("t5", "v1_1_base", 247_577_856),  # 250 M
]


@pytest.mark.parametrize(("recipe", "preset", "parameters"), PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(recipe, preset, parameters):
    with torch.device("meta"):
        method = load(RECIPES[recipe].method)(PRESETS[recipe][preset]())
    assert sum(p.numel() for p in method.parameters()) == parameters


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", ["demo", "small"])
def test_presets_for_your_own_text_leave_the_vocabulary_to_its_tokenizer(recipe, preset):
    config = PRESETS[recipe][preset]()
    if (recipe, preset) != ("t5", "small"):  # T5-small is the paper's
        assert config.vocab_size is None
        with pytest.raises(ConfigError, match="vocab_size"):
            load(RECIPES[recipe].method)(config)
