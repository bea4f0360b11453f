"""Collapse is reported while it happens, and a healthy run gets no warning."""

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

from ssl_contrastive import BYOL, BYOLConfig, SimSiam, SimSiamConfig, simsiam
from ssl_contrastive.heads import collapse
from ssl_contrastive.views import build
from ssl_core.device import seed_step
from ssl_train.data.images import ImageArray
from ssl_train.data.scenes import CLASSES, render
from ssl_train.data.views import eval_view
from ssl_train.evaluate.health import feature_std
from ssl_train.fit import fit
from ssl_train.options import RunOptions
from ssl_train.probe import Collapsed, Probe

ENCODER: dict[str, Any] = {"backbone": "vit", "patch_size": 4, "dim": 32, "depth": 1, "heads": 2}
ENCODER |= {"image_size": 16, "crop_pct": 1.0}
VIEWS = {"crop_scale": (0.3, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "blur_p": (0.0, 0.0), "solarize_p": (0.0, 0.0)}
SGD = {"optimizer": "sgd", "base_lr": 0.4, "weight_decay": 5e-4, "warmup_epochs": 0.0, "precision": "fp32"}
SHORT = ENCODER | VIEWS | SGD | {"batch_size": 64, "epochs": 12.5}


@cache
def scenes() -> ImageArray:
    """512 built-in pictures of 16 pixels, rendered once."""
    pictures = [render(0, index, 16) for index in range(512)]
    labels = np.array([picture.label for picture in pictures])
    return ImageArray(np.stack([picture.image for picture in pictures]), 3, "scenes", labels, list(CLASSES))


def train(method: Any, folder: Path, **options: Any) -> None:
    config, device = method.config, torch.device("cpu")
    probe = Probe(scenes(), eval_view(config), device=device, size=128)
    probe.due = lambda step: step % 50 == 0  # by steps, not by time
    options = {"options": RunOptions(workers=0, checkpoint_minutes=60, **options)}
    fit(method, scenes(), build(config), config, folder, run_id="test", device=device, probe=probe, **options)


def flowing(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """SimSiam's loss without the stopped gradient."""
    return -0.5 * (F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean()


def small_simsiam(**fields: Any) -> SimSiam:
    seed_step(0)
    return SimSiam(SimSiamConfig(**{**SHORT, **fields}, head_layers=2, projection=64, predictor_hidden=16))


def small_byol(**fields: Any) -> BYOL:
    seed_step(0)
    return BYOL(BYOLConfig(**{**SHORT, **fields}, hidden=64, projection=32, ema=0.9))


def test_collapse_of_simsiam_without_stop_gradient_is_detected(tmp_path, monkeypatch):
    monkeypatch.setattr(simsiam, "simsiam_loss", flowing)
    with pytest.raises(Collapsed, match=r"step (50|100|150|200): the projections are collapsing: their spread is 0\.0"):
        train(small_simsiam(epochs=25.0), tmp_path, stop_on_collapse=True)


def test_collapse_of_byol_without_predictor_is_detected(tmp_path):
    method = small_byol()
    method.predictor = nn.Identity()
    with pytest.raises(Collapsed, match=r"step 50: the projections are collapsing: their spread is 0\.0"):
        train(method, tmp_path, stop_on_collapse=True)


@pytest.mark.parametrize("build_method", [small_simsiam, small_byol])
def test_a_healthy_run_gets_no_warning(build_method, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(build_method(epochs=51 / 8), tmp_path)
    looks = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "projection_std" in line]
    assert [json.loads(line)["step"] for line in looks] == [50, 51], "both late enough to be judged"


def test_stop_gradient_changes_the_encoders_gradient(monkeypatch):
    views = {"views": [torch.randn(16, 3, 16, 16) for _ in range(2)]}
    gradients = []
    for loss in (simsiam.simsiam_loss, flowing):
        monkeypatch.setattr(simsiam, "simsiam_loss", loss)
        method = small_simsiam().train()
        method(views, 0.0)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.encoder.parameters() if p.grad is not None]))
    stopped, flown = gradients
    assert (stopped - flown).norm() > 0.1 * stopped.norm()


def test_the_spread_shows_no_collapse_after_the_last_batch_norm():
    method = small_simsiam().train()
    with torch.no_grad():
        nearly_one = torch.ones(256, 64) + 1e-2 * torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        assert feature_std(nearly_one) < 0.02 and feature_std(method.projector[-1](nearly_one)) > 0.9
        features = method.encoder(torch.randn(8, 3, 16, 16))
        before = method.eval().project(features)
        assert torch.equal(method.projector[-1](before), method.projector(features))


def test_the_first_tenth_of_a_run_is_not_judged():
    assert collapse({"health/projection_std": 0.01}, 0.05) is None
    assert "0.010" in (collapse({"health/projection_std": 0.01}, 0.2) or "")
    assert collapse({"health/projection_std": 0.5}, 0.2) is None
