from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_core.config import TrainConfig
from ssl_train.optim import LARS, build_optimizer, decay_groups, schedule

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
    optimizer = build_optimizer(method, CONFIG)
    assert optimizer.defaults["lr"] == pytest.approx(0.2) and optimizer.defaults["betas"] == (0.8, 0.9)
    weight = method.head.weight
    start = weight.detach().double().clone()
    weight.grad = torch.linspace(-1, 1, 8).view(2, 4)
    schedule(optimizer, lr=0.01, peak=0.2, weight_decay=0.05)
    optimizer.step()
    # Loshchilov and Hutter, algorithm 2, at its first step: the moments' corrections leave g / (|g|
    # + eps)
    direction = weight.grad.double() / (weight.grad.double().abs() + 1e-8)
    expected = start - 0.01 * 0.05 * start - 0.01 * direction
    assert (weight.detach().double() - expected).abs().max() < 1e-6


def test_a_method_may_bring_its_own_groups_and_scales():
    class Own(Network):
        def param_groups(self, config):
            body, head = list(self.conv.named_parameters()), list(self.head.named_parameters())
            return [{"params": body, "lr_scale": 0.5}, {"params": head, "lr_scale": 2.0, "weight_decay": 0.0}]

    optimizer = build_optimizer(Own(), CONFIG)
    schedule(optimizer, lr=0.1, peak=0.2, weight_decay=0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[1]["param_names"] == ["weight", "bias"]


def test_a_group_of_fixed_learning_rate_stays_at_the_peak():
    class Own(Network):
        def param_groups(self, config):
            return [{"params": list(self.head.named_parameters()), "fixed_lr": True}]

    optimizer = build_optimizer(Own(), CONFIG.__class__(optimizer="sgd", momentum=0.5))
    schedule(optimizer, lr=0.1, peak=0.2, weight_decay=0.05)
    assert optimizer.param_groups[0]["lr"] == 0.2 and optimizer.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_first_step_of_lars_has_a_length_that_the_gradient_does_not_change(scale):
    layer = nn.Linear(5, 3).double()
    start = [p.detach().clone() for p in layer.parameters()]
    weight, bias = layer.weight, layer.bias
    weight.grad, bias.grad = scale * torch.randn(3, 5).double(), torch.ones(3).double()
    LARS([{"params": [weight, bias]}], lr=0.3).step()
    assert torch.norm(weight - start[0]).item() == pytest.approx(0.3 * 0.001 * start[0].norm().item(), abs=1e-12)
    assert torch.allclose(bias, start[1] - 0.3, atol=1e-12)


def test_three_steps_of_lars_are_those_of_its_equations():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    w, b = (p.detach().clone().tolist() for p in layer.parameters())
    v = [[0.0] * 4 for _ in range(3)]
    u = [0.0] * 3
    optimizer = LARS([{"params": list(layer.parameters()), "weight_decay": 0.1}], lr=0.2, momentum=0.8, trust=0.01)
    for step in range(3):
        g = [[float(step + i - j) for j in range(4)] for i in range(3)]
        layer.weight.grad, layer.bias.grad = torch.tensor(g).double(), torch.full((3,), 0.5).double()
        optimizer.step()
        full = [[g[i][j] + 0.1 * w[i][j] for j in range(4)] for i in range(3)]
        length = [sum(x * x for row in rows for x in row) ** 0.5 for rows in (w, full)]
        for i in range(3):
            for j in range(4):
                v[i][j] = 0.8 * v[i][j] + 0.01 * length[0] / length[1] * full[i][j]
                w[i][j] -= 0.2 * v[i][j]
            u[i] = 0.8 * u[i] + 0.5
            b[i] -= 0.2 * u[i]
    assert torch.allclose(layer.weight, torch.tensor(w).double(), atol=1e-12)
    assert torch.allclose(layer.bias, torch.tensor(b).double(), atol=1e-12)


def test_lars_leaves_a_weight_of_zeros_movable():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([{"params": [weight]}], lr=0.5).step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5))


def test_three_steps_of_adafactor_are_the_papers_however_small_the_gradients():
    """Shazeer and Stern, algorithm 6, written out: factored squares, clipped updates, a step
    relative to the tensor."""
    torch.manual_seed(0)
    method = nn.Linear(4, 3, bias=False).double()
    x = method.weight.detach().tolist()
    optimizer = build_optimizer(
        method, TrainConfig(optimizer="adafactor", base_lr=0.5, batch_size=256, weight_decay=0.0)
    )
    rows, columns = [0.0] * 3, [0.0] * 4

    def rms(matrix):
        return (sum(v * v for row in matrix for v in row) / 12) ** 0.5

    for t in range(1, 4):
        g = [[1e-6 * (t + i - j - 0.5) ** 3 for j in range(4)] for i in range(3)]
        method.weight.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        beta = 1 - t**-0.8
        rows = [beta * r + (1 - beta) * sum(v * v for v in row) for r, row in zip(rows, g, strict=True)]
        columns = [
            beta * c + (1 - beta) * sum(v * v for v in column)
            for c, column in zip(columns, zip(*g, strict=True), strict=True)
        ]
        u = [[g[i][j] / (rows[i] * columns[j] / sum(rows)) ** 0.5 for j in range(4)] for i in range(3)]
        rate = max(1e-3, rms(x)) * min(0.5, t**-0.5) / max(1.0, rms(u))
        x = [[x[i][j] - rate * u[i][j] for j in range(4)] for i in range(3)]
    assert torch.allclose(method.weight, torch.tensor(x, dtype=torch.float64), rtol=1e-9, atol=0)
