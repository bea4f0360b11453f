"""What training sees of an image, drawn from the sample's own stream."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from ssl_mae import MAE
from ssl_mae.config import demo
from ssl_mae.views import MAEView, build
from ssl_train.data.loader import collate


def ramp(h: int = 64, w: int = 64, c: int = 3) -> torch.Tensor:
    """Rises from left to right by one grey level a column."""
    return torch.arange(w, dtype=torch.uint8).expand(c, h, w).contiguous()


def draw(view: MAEView, seed: int = 0, image: torch.Tensor | None = None) -> dict:
    return view({"image": ramp() if image is None else image}, np.random.default_rng(seed))


def test_a_sample_is_a_uint8_view_and_one_number_per_patch():
    config = dataclasses.replace(demo(), image_size=(32, 48))
    sample = draw(build(config))
    [view] = sample["views"]
    assert view.dtype == torch.uint8
    assert view.shape == (3, 32, 48)
    assert view.is_contiguous()
    assert sample["noise"].dtype == torch.float32
    assert sample["noise"].shape == (24,)
    assert 0 <= sample["noise"].min() and sample["noise"].max() < 1


def test_a_view_of_a_picture_that_lies_channels_last_is_contiguous():
    image = ramp(32, 32).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    view = draw(build(dataclasses.replace(demo(), flip=False)), image=image)["views"][0]
    assert torch.equal(view, ramp(32, 32))
    assert view.is_contiguous() and not image.is_contiguous()


def test_the_same_stream_gives_the_same_sample_and_another_one_another():
    view = build(dataclasses.replace(demo(), crop_scale=(0.2, 1.0)))
    first, again, other = draw(view, 1), draw(view, 1), draw(view, 2)
    assert torch.equal(first["views"][0], again["views"][0])
    assert torch.equal(first["noise"], again["noise"])
    assert not torch.equal(first["views"][0], other["views"][0])
    assert not torch.equal(first["noise"], other["noise"])


def test_the_image_itself_is_left_alone():
    image = ramp(32, 32)
    draw(build(demo()), image=image)["views"][0].zero_()
    assert torch.equal(image, ramp(32, 32))


def test_half_of_the_views_are_mirrored_unless_asked_not_to():
    view = build(demo())
    mirrored = [bool(draw(view, seed)["views"][0][0, 0, 0] > 30) for seed in range(400)]
    assert 0.42 < np.mean(mirrored) < 0.58  # 0.5 ± three standard deviations of 400 draws
    never = build(dataclasses.replace(demo(), flip=False))
    assert not any(draw(never, seed)["views"][0][0, 0, 0] > 30 for seed in range(20))


def test_crops_cover_the_share_of_the_area_that_the_config_says():
    config = dataclasses.replace(demo(), crop_scale=(0.2, 0.3), flip=False)
    for seed in range(50):
        view = draw(build(config), seed)["views"][0].int()
        width = (view[0, 0, -1] - view[0, 0, 0]).item() / 64 * 32 / 31
        assert 0.2**0.5 * 0.75**0.5 - 0.06 < width < 0.3**0.5 * (4 / 3) ** 0.5 + 0.06


def test_a_whole_crop_of_a_square_picture_is_the_picture():
    config = dataclasses.replace(demo(), crop_scale=(1.0, 1.0), flip=False)
    for seed in range(5):
        assert torch.equal(draw(build(config), seed, ramp(32, 32))["views"][0], ramp(32, 32))


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_passes(channels):
    statistics = {"mean": (0.5,) * channels, "std": (0.2,) * channels}
    config = dataclasses.replace(demo(), in_channels=channels, **statistics)
    assert draw(build(config), image=ramp(40, 50, channels))["views"][0].shape == (channels, 32, 32)


def test_workers_can_be_sent_the_transform():
    view = build(demo())
    sent = pickle.loads(pickle.dumps(view))
    assert torch.equal(draw(sent)["noise"], draw(view)["noise"])


def test_the_noise_of_a_sample_decides_its_mask_in_any_batch():
    view = build(demo())
    samples = [draw(view, seed) for seed in range(4)]
    network = MAE(demo()).eval()
    together = collate(samples)
    masks = network.reconstruct(together["views"][0], together["noise"]).mask
    for i, sample in enumerate(samples):
        alone = collate([sample])
        assert torch.equal(network.reconstruct(alone["views"][0], alone["noise"]).mask[0], masks[i])
