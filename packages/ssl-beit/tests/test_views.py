"""Both views of BEiT are the same box; the tokenizer's samples have a seed of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from PIL import Image

from ssl_beit.config import demo, demo_dvae
from ssl_beit.views import build_beit, build_dvae, lanczos

CONFIG = dataclasses.replace(demo(), image_size=(64, 96), patch_size=16, mask_patches=8, crop_scale=(0.2, 1.0))


def ramp(height: int = 120, width: int = 150) -> torch.Tensor:
    """A picture whose red is its column and whose green is its row, in shares of 200."""
    columns = torch.linspace(0, 200, width).expand(height, width)
    rows = torch.linspace(0, 200, height)[:, None].expand(height, width)
    return torch.stack([columns, rows, torch.full((height, width), 90.0)]).round().to(torch.uint8)


def test_both_views_are_the_same_box_in_two_sizes():
    view, rng = build_beit(CONFIG), np.random.default_rng(0)
    boxes = set()
    for _ in range(20):
        sample = view({"image": ramp()}, rng)
        large, small = sample["views"]
        assert large.shape == (3, 64, 96) and small.shape == (3, 32, 48)
        assert large.dtype == small.dtype == torch.uint8
        patches = large.float().unfold(1, 16, 16).unfold(2, 16, 16).mean((3, 4))
        tokens = small.float().unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))
        assert (patches - tokens).abs().max() < 1.5, "a token shows what its patch shows"
        boxes.add(tuple(large[:2, 0, 0].tolist()))
    assert len(boxes) > 10


def test_masks_differ_within_a_batch_and_keep_the_budget():
    view, rng = build_beit(CONFIG), np.random.default_rng(0)
    masks = torch.stack([view({"image": ramp()}, rng)["mask"] for _ in range(16)])
    assert masks.shape == (16, 24) and masks.dtype == torch.bool
    assert masks.sum(1).max() <= 8
    assert len({tuple(mask.tolist()) for mask in masks}) > 8


def test_a_sample_depends_on_its_own_stream_alone():
    view = build_beit(CONFIG)
    first, second = (view({"image": ramp()}, np.random.default_rng(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first["views"], second["views"], strict=True))
    assert torch.equal(first["mask"], second["mask"])


def test_jitter_changes_colours_of_both_views_alike():
    plain = build_beit(dataclasses.replace(CONFIG, jitter=0.0, flip=False, crop_scale=(1.0, 1.0)))
    changed = build_beit(dataclasses.replace(CONFIG, jitter=0.4, flip=False, crop_scale=(1.0, 1.0)))
    before, after = (view({"image": ramp()}, np.random.default_rng(3))["views"] for view in (plain, changed))
    shifts = [(b.float() - a.float()).mean((1, 2)) for a, b in zip(before, after, strict=True)]
    assert shifts[0].abs().max() > 2
    assert torch.allclose(shifts[0], shifts[1], atol=2)


def test_grey_pictures_are_jittered_without_saturation():
    config = dataclasses.replace(CONFIG, in_channels=1, mean=(0.5,), std=(0.5,), jitter=0.4)
    views = build_beit(config)({"image": ramp()[:1]}, np.random.default_rng(0))["views"]
    assert [view.shape for view in views] == [(1, 64, 96), (1, 32, 48)]


def test_lanczos_is_pillows():
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 24), Image.Resampling.LANCZOS)
    assert torch.equal(lanczos(image, 24, 16), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert torch.equal(lanczos(image, 40, 30), image)


def test_the_tokenizers_view_is_a_crop_and_a_seed_of_its_own():
    view = build_dvae(dataclasses.replace(demo_dvae(), image_size=(32, 48)))
    samples = [view({"image": ramp()}, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert samples[0]["views"][0].shape == (3, 32, 48)
    assert torch.equal(samples[0]["views"][0], samples[1]["views"][0])
    assert samples[0]["seed"] == samples[1]["seed"] != samples[2]["seed"]
    assert samples[0]["seed"].dtype == torch.int64
