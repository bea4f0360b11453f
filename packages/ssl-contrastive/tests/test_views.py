"""Two views of each image, from its own stream, with each paper's shares."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from ssl_contrastive import BYOLConfig, MoCoConfig, SimCLRConfig
from ssl_contrastive.config import PRESETS
from ssl_contrastive.views import build
from ssl_core.config import ConfigError

IMAGE = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAMES = [(recipe, preset) for recipe, presets in PRESETS.items() for preset in presets]


def two(config: Any, seed: int) -> list[torch.Tensor]:
    return build(config)({"image": IMAGE}, np.random.default_rng(seed))["views"]


@pytest.mark.parametrize(("recipe", "name"), NAMES)
def test_every_preset_makes_two_different_views_that_depend_on_the_seed_alone(recipe, name):
    config = dataclasses.replace(PRESETS[recipe][name](), image_size=32, patch_size=8)
    first, second = two(config, 0)
    assert first.shape == second.shape == (3, 32, 32) and first.dtype is torch.uint8
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(two(config, 0), (first, second), strict=True))
    assert not torch.equal(two(config, 1)[0], first)
    assert pickle.loads(pickle.dumps(build(config))) == build(config)


def test_byols_views_are_blurred_and_solarized_as_often_as_in_the_paper():
    view = build(dataclasses.replace(BYOLConfig(), image_size=32))
    counts = {"first blur": 0, "second blur": 0, "second solarize": 0, "grey": 0, "jitter": 0}
    n = 4000
    for seed in range(n):
        rng = np.random.default_rng(seed)
        first, second = (side.draw(rng, 3, 40, 50) for side in (view.first, view.second))
        kinds = [{kind for kind, _ in drawn.steps} for drawn in (first, second)]
        assert "solarize" not in kinds[0]
        counts["first blur"] += "blur" in kinds[0]
        counts["second blur"] += "blur" in kinds[1]
        counts["second solarize"] += "solarize" in kinds[1]
        counts["grey"] += "grayscale" in kinds[0]
        counts["jitter"] += "brightness" in kinds[0]
    expected = {"first blur": 1.0, "second blur": 0.1, "second solarize": 0.2, "grey": 0.2, "jitter": 0.8}
    for what, share in expected.items():
        assert abs(counts[what] / n - share) <= 4 * (share * (1 - share) / n) ** 0.5, what


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, r"jitter\[3\] = 0.6: must be at least 0 and at most 0.5"),
        ({"jitter": (-0.1, 0.4, 0.4, 0.1)}, "jitter"),
        ({"blur_p": (0.5, 1.1)}, "blur_p"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma"),
        ({"temperature": 0.0}, "temperature"),
        ({"queue": 0}, "queue"),
        ({"ema": 1.5}, "ema"),
        ({"bn_splits": 200}, "bn_splits"),
        ({"batch_size": 1, "bn_splits": 1}, "batch_size|bn_splits"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_it(fields, message):
    with pytest.raises(ConfigError, match=message):
        MoCoConfig(**fields)


def test_colour_jitter_of_grey_images_is_an_error_when_views_are_built():
    config = MoCoConfig(in_channels=1, mean=(0.5,), std=(0.2,))  # allowed: the config of a checkpoint to evaluate
    with pytest.raises(ConfigError, match="saturation and hue need RGB images, these have 1 channels"):
        build(config)


def test_grey_images_have_views_without_saturation_and_hue():
    config = SimCLRConfig(in_channels=1, mean=(0.5,), std=(0.2,), jitter=(0.4, 0.4, 0.0, 0.0), image_size=16)
    views = build(config)({"image": IMAGE[:1]}, np.random.default_rng(0))["views"]
    assert [view.shape for view in views] == [(1, 16, 16)] * 2
