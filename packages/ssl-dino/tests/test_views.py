"""Multi-crop: how many, how large, and which of them are blurred and solarized."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_dino.config import DINOConfig
from ssl_dino.views import build

CONFIG = DINOConfig(image_size=32, patch_size=8, local_size=16, local_crops=3, global_crops=3)


def picture(c: int = 3, h: int = 48, w: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (c, h, w), dtype=np.uint8))


def crops(config: DINOConfig, seed: int = 0, c: int = 3) -> list[torch.Tensor]:
    return build(config)({"image": picture(c)}, np.random.default_rng(seed))["views"]


def test_the_global_crops_come_first_each_in_its_size():
    shapes = [tuple(crop.shape) for crop in crops(CONFIG)]
    assert shapes == [(3, 32, 32)] * 3 + [(3, 16, 16)] * 3
    oblong = replace(CONFIG, image_size=(32, 48), local_crops=0)
    assert [tuple(crop.shape) for crop in crops(oblong)] == [(3, 32, 48)] * 3


def test_crops_differ_and_come_from_the_samples_own_stream():
    first, again, other = crops(CONFIG, 1), crops(CONFIG, 1), crops(CONFIG, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[3], first[4])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("name", "blurs"), [("paper", (1.0, 0.1, 0.5)), ("released", (0.0, 0.9, 0.5))])
def test_blur_and_solarization_are_asymmetric_as_published(name, blurs):
    """DINOv2's released code turns the paper's first two probabilities around; both are presets."""
    made = build(replace(CONFIG, blur_p=name)).crops
    assert [crop.blur_p for crop in made] == [blurs[0], blurs[1], blurs[1], *[blurs[2]] * 3]
    assert [crop.solarize_p for crop in made] == [0.0, 0.2, 0.2, 0.0, 0.0, 0.0]
    assert {crop.scale for crop in made[:3]} == {(0.4, 1.0)} and {crop.scale for crop in made[3:]} == {(0.05, 0.4)}
    assert all(crop.jitter == (0.4, 0.4, 0.2, 0.1) and crop.jitter_p == 0.8 for crop in made)


def test_the_first_global_crop_is_always_blurred_in_the_papers_recipe():
    plain = dict(flip=False, jitter_p=0.0, grayscale_p=0.0, solarize_p=0.0, global_scale=(1.0, 1.0), global_crops=2)
    config = replace(CONFIG, **plain, local_crops=0)
    rough = [[float(crop.float().diff().abs().mean()) for crop in crops(config, seed)] for seed in range(40)]
    sharp = max(second for _, second in rough)
    blurred = [np.mean([row[i] < 0.9 * sharp for row in rough]) for i in (0, 1)]
    assert blurred[0] > 0.8 and blurred[1] < 0.35


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_that_are_not_rgb_keep_brightness_and_contrast(channels):
    config = replace(CONFIG, in_channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    assert {crop.shape[0] for crop in crops(config, c=channels)} == {channels}
    assert all(crop.jitter == (0.4, 0.4, 0.0, 0.0) and crop.grayscale_p == 0 for crop in build(config).crops)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(global_crops=1, local_crops=0), "needs another one of the student"),
        (dict(local_size=12), "local_size = 12: must be divisible by the patch size 8"),
        (dict(blur_p=(0.5, 0.5, 1.5)), "blur_p"),
        (dict(global_scale=(0.5, 0.4)), r"global_scale = \(0.5, 0.4\): must be rising"),
        (dict(teacher_temp=0.0), "teacher_temp = 0.0: must be above 0"),
        (dict(jitter=(0.4, 0.4, 0.4, 0.6)), r"jitter\[3\] = 0.6: must be at least 0 and at most 0.5"),
        (dict(head_layers=1), "head_layers = 1"),
        (dict(clip_each=0.0), "clip_each = 0.0"),
    ],
)
def test_an_error_names_the_setting_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


def test_blur_reads_from_json_as_a_name_or_as_three_numbers():
    for value in ("released", (0.1, 0.2, 0.3)):
        config = replace(CONFIG, blur_p=value)
        assert from_dict(DINOConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="blur_p = 'papr'"):
        from_dict(DINOConfig, {"blur_p": "papr"})
