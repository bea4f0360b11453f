"""BYOL's target network: its moving average and its batch norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssl_contrastive import BYOL, BYOLConfig

SMALL: dict[str, Any] = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 8, "batch_size": 8}


def test_the_target_follows_by_the_product_of_momenta_and_has_no_gradient():
    torch.manual_seed(0)
    method = BYOL(BYOLConfig(**SMALL, hidden=4, projection=2, ema=0.996, warmup_epochs=0)).double().train()
    taus = [method.momentum(t) for t in (0.0, 0.5, 1.0)]
    assert taus == pytest.approx([0.996, 0.998, 1.0], abs=1e-15)
    with torch.no_grad():
        for p in method.target_projector.parameters():
            p.add_(1.0)
    start = [p.clone() for p in method.target_projector.parameters()]
    product = 1.0
    for step in range(7):
        method.after_step(step / 7)
        product *= method.momentum(step / 7)
    pairs = zip(method.target_projector.parameters(), method.projector.parameters(), start, strict=True)
    for now, online, then in pairs:
        assert torch.allclose(now - online, (then - online) * product, rtol=0, atol=1e-12)
    assert not any(p.requires_grad for name, p in method.named_parameters() if name.startswith("target_"))


def test_the_target_has_its_own_batch_norm_statistics():
    torch.manual_seed(0)
    method = BYOL(BYOLConfig(**SMALL, hidden=4, projection=2, warmup_epochs=0)).train()
    with torch.no_grad():
        method.target_encoder.conv1.weight.mul_(3)
    method({"views": [torch.randn(4, 3, 8, 8) for _ in range(2)]}, 0.0)
    own, other = method.target_encoder.bn1.running_mean, method.encoder.bn1.running_mean
    assert torch.allclose(own, 3 * other, atol=1e-5) and not torch.allclose(own, other)
    before = own.clone()
    method.after_step(0.5)
    assert torch.equal(method.target_encoder.bn1.running_mean, before)
