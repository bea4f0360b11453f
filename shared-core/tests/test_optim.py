from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_core.config import TrainConfig
from ssl_core.train.optim import adamw, decay_groups, set_lr

CONFIG = TrainConfig(base_lr=0.1, batch_size=512, weight_decay=0.05, betas=(0.8, 0.9))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.fixed = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_matrices_decay_and_what_has_one_dimension_does_not():
    decayed, plain = decay_groups(Network(), 0.05)
    assert [name for name, _ in decayed["params"]] == ["token", "conv.weight", "head.weight"]
    assert [name for name, _ in plain["params"]] == ["scale", "conv.bias", "norm.weight", "norm.bias", "head.bias"]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_fixed_weights_are_left_out_and_empty_groups_too():
    assert "fixed" not in [name for group in decay_groups(Network(), 0.05) for name, _ in group["params"]]
    assert len(decay_groups(nn.LayerNorm(3), 0.05)) == 1


def test_adamw_takes_the_config_and_one_step_of_it_is_the_papers():
    method = Network()
    optimizer = adamw(method, CONFIG)
    assert optimizer.defaults["lr"] == pytest.approx(0.2) and optimizer.defaults["betas"] == (0.8, 0.9)
    weight = method.head.weight
    start = weight.detach().double().clone()
    weight.grad = torch.linspace(-1, 1, 8).view(2, 4)
    set_lr(optimizer, 0.01)
    optimizer.step()
    # Loshchilov and Hutter, algorithm 2, at its first step: the moments' corrections leave g / (|g| + eps)
    direction = weight.grad.double() / (weight.grad.double().abs() + 1e-8)
    expected = start - 0.01 * 0.05 * start - 0.01 * direction
    assert (weight.detach().double() - expected).abs().max() < 1e-6


def test_a_method_may_bring_its_own_groups_and_scales():
    class Own(Network):
        def param_groups(self, config):
            body, head = list(self.conv.named_parameters()), list(self.head.named_parameters())
            return [{"params": body, "lr_scale": 0.5}, {"params": head, "lr_scale": 2.0, "weight_decay": 0.0}]

    optimizer = adamw(Own(), CONFIG)
    set_lr(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.2]
    assert optimizer.param_groups[1]["param_names"] == ["weight", "bias"]
