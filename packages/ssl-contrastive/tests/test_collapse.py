"""Collapse is named while it happens, and a healthy run is left in peace; what is learned shows on held-out pictures."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_contrastive import BYOL, BYOLConfig, SimCLR, SimCLRConfig, SimSiam, SimSiamConfig, simsiam
from ssl_contrastive.heads import collapse
from ssl_contrastive.views import build
from ssl_core.device import seed_step
from ssl_train.data.scenes import CLASSES, render
from ssl_train.data.sources import ImageArray
from ssl_train.data.views import eval_view
from ssl_train.evaluate.health import feature_std
from ssl_train.evaluate.linear import linear_probe
from ssl_train.fit import fit
from ssl_train.options import RunOptions
from ssl_train.probe import Collapsed, Probe

SMALL: dict[str, Any] = {
    "backbone": "resnet18", "width": 8, "small_stem": True, "image_size": 16, "crop_scale": (0.3, 1.0), "crop_pct": 1.0,
    "jitter": (0.4, 0.4, 0.4, 0.1), "blur_p": (0.0, 0.0), "solarize_p": (0.0, 0.0), "warmup_epochs": 0.0,
    "precision": "fp32",
}  # fmt: skip
SHORT = SMALL | {"optimizer": "sgd", "base_lr": 0.4, "weight_decay": 5e-4, "batch_size": 64, "epochs": 12.5}


@cache
def scenes(seed: int, number: int) -> ImageArray:
    """Built-in pictures of 16 pixels, rendered once."""
    pictures = [render(seed, index, 16) for index in range(number)]
    labels = np.array([picture.label for picture in pictures])
    return ImageArray(np.stack([picture.image for picture in pictures]), 3, "scenes", labels, list(CLASSES))


def train(method: Any, folder: Path, source: ImageArray | None = None, **options: Any) -> None:
    source, device = source or scenes(0, 512), torch.device("cpu")
    probe = Probe(source, eval_view(method.config), device=device, size=128)
    probe.due = lambda step: step % 50 == 0  # whatever time it takes
    fit(method, source, build(method.config), method.config, folder, run_id="test", device=device, probe=probe,
        options=RunOptions(workers=0, checkpoint_minutes=60, **options))  # fmt: skip


def flowing(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """SimSiam's loss without the stopped gradient."""
    return -0.5 * (F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean()


def small_simsiam(**fields: Any) -> SimSiam:
    seed_step(0)
    return SimSiam(SimSiamConfig(**{**SHORT, **fields}, head_layers=2, projection=64, predictor_hidden=16))


def small_byol(**fields: Any) -> BYOL:
    seed_step(0)
    return BYOL(BYOLConfig(**{**SHORT, **fields}, hidden=64, projection=32, ema=0.9))


def test_simsiam_without_the_stopped_gradient_is_seen_to_collapse(tmp_path, monkeypatch):
    monkeypatch.setattr(simsiam, "simsiam_loss", flowing)
    with pytest.raises(Collapsed, match=r"step (100|150|200): the projections are collapsing: their spread is 0\.0"):
        train(small_simsiam(epochs=25.0), tmp_path, stop_on_collapse=True)


def test_byol_without_its_predictor_is_seen_to_collapse(tmp_path):
    method = small_byol()
    method.predictor = nn.Identity()
    with pytest.raises(Collapsed, match=r"step 50: the projections are collapsing: their spread is 0\.0"):
        train(method, tmp_path, stop_on_collapse=True)


@pytest.mark.parametrize("build_method", [small_simsiam, small_byol])
def test_a_healthy_run_raises_no_alarm(build_method, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(build_method(epochs=51 / 8), tmp_path)
    looks = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "projection_std" in line]
    assert [json.loads(line)["step"] for line in looks] == [50, 51], "both late enough to be judged"


def test_s1_the_stopped_gradient_changes_the_encoders_gradient(monkeypatch):
    views = {"views": [torch.randn(16, 3, 16, 16) for _ in range(2)]}
    gradients = []
    for loss in (simsiam.simsiam_loss, flowing):
        monkeypatch.setattr(simsiam, "simsiam_loss", loss)
        method = small_simsiam().train()
        method(views, 0.0)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.encoder.parameters() if p.grad is not None]))
    stopped, flown = gradients
    assert (stopped - flown).norm() > 0.1 * stopped.norm()


def test_c2_behind_the_last_batch_norm_the_spread_is_blind():
    """C1, that it is 1 for vectors that point everywhere, is the core's test."""
    method = small_simsiam().train()
    with torch.no_grad():
        nearly_one = torch.ones(256, 64) + 1e-2 * torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        assert feature_std(nearly_one) < 0.02 and feature_std(method.projector[-1](nearly_one)) > 0.9
        features = method.encoder(torch.randn(8, 3, 16, 16))
        before = method.eval().project(features)
        assert torch.equal(method.projector[-1](before), method.projector(features))


def test_a_run_that_has_just_begun_is_not_judged():
    assert collapse({"health/projection_std": 0.01}, 0.05) is None
    assert "0.010" in (collapse({"health/projection_std": 0.01}, 0.2) or "")
    assert collapse({"health/projection_std": 0.5}, 0.2) is None


def accuracy(method: Any, train_set: ImageArray, test_set: ImageArray) -> float:
    """Of a linear probe on shape and texture, 16 classes."""
    view, features = eval_view(method.config), []
    for source in (train_set, test_set):
        images = torch.stack([view(source.load(i))["views"][0] for i in range(len(source))])
        with torch.inference_mode():
            features.append(method.eval().encode(images))
    labels = [torch.from_numpy(source.labels) for source in (train_set, test_set)]
    return linear_probe(features[0], labels[0], features[1], labels[1]).top1


def test_a_short_run_beats_random_initialisation_on_the_linear_probe(tmp_path):
    """Measured .076 → .127; chance is .0625. Another machine rounds otherwise, so the bound is lower."""
    seed_step(0)
    fields = SMALL | {"crop_scale": (0.5, 1.0), "batch_size": 64, "epochs": 5.0, "temperature": 0.2}
    method = SimCLR(SimCLRConfig(**fields, optimizer="adamw", base_lr=8e-3, weight_decay=0.05))
    train_set, test_set = scenes(0, 2048), scenes(1, 1000)
    before = accuracy(method, train_set, test_set)
    train(method, tmp_path, train_set)
    after = accuracy(method, train_set, test_set)
    assert after > before + 0.03
