"""Whole training steps against plain implementations, written here from the papers.

The plain side uses torch's ResNet modules for the encoder. Everything that the papers add is
written by hand: heads, batch norm and its parts, losses as full matrices, optimisers, averages and
the queue. Both sides take two steps in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_contrastive import BYOL, BYOLConfig, MoCo, MoCoConfig, SimCLR, SimCLRConfig, SimSiam, SimSiamConfig
from ssl_contrastive.config import RECIPES
from ssl_core.config import ConfigError
from ssl_core.encoder import build_encoder
from ssl_testing.faults import KeepDouble
from ssl_testing.trial import Trial
from ssl_train.optim import build_optimizer, schedule

ENCODER: dict[str, Any] = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 8}
SMALL = ENCODER | {"batch_size": 8, "warmup_epochs": 0.0}
STEPS, TOTAL, LR = 2, 5, 0.3


def views(step: int, n: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def ours(method: Any) -> dict[str, Tensor]:
    """The method's state after the steps of `ssl_train.fit`, without its loader and its log."""
    config = method.config
    optimizer = build_optimizer(method, config)
    for step in range(STEPS):
        progress = step / TOTAL
        schedule(optimizer, lr=LR * (1 - progress), peak=LR, weight_decay=config.weight_decay)
        torch.manual_seed(step)
        with KeepDouble():
            method({"views": views(step)}, progress)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress) if hasattr(method, "after_step") else None
    return dict(method.state_dict())


def small(method: type, config: Any) -> Any:
    torch.manual_seed(7)
    network = method(config).double().train()
    with torch.no_grad():  # heads of std 0.01 and branches that start at zero would hide mistakes
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


class Plain:
    """Weights by name with their momenta; `net` holds the encoders, which are torch modules."""

    def __init__(self, method: Any, encoders: tuple[str, ...]) -> None:
        self.state = {k: v.clone() for k, v in method.state_dict().items()}
        self.trained = {name for name, p in method.named_parameters() if p.requires_grad}
        self.net = {name: build_encoder(method.config).double().train() for name in encoders}
        for name, net in self.net.items():
            net.load_state_dict({k[len(name) + 1 :]: v for k, v in self.state.items() if k.startswith(f"{name}.")})
        self.momenta: dict[str, Tensor] = {}
        for name in self.trained:
            self.state[name].requires_grad_()

    def weights(self) -> dict[str, Tensor]:
        """Every trained weight, those of the encoder among them."""
        inside = {f"{n}.{k}": p for n, net in self.net.items() for k, p in net.named_parameters()}
        return {name: inside.get(name, self.state[name]) for name in sorted(self.trained)}

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Batch norm in training over rows, its running statistics too."""
        mean, var = x.mean(0), x.var(0, unbiased=False)
        with torch.no_grad():
            running, spread = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
            running.mul_(0.9).add_(mean, alpha=0.1)
            spread.mul_(0.9).add_(var * len(x) / (len(x) - 1), alpha=0.1)
            self.state[f"{name}.num_batches_tracked"].add_(1)
        x = (x - mean) / (var + 1e-5).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"] if f"{name}.weight" in self.state else x

    def linear(self, x: Tensor, name: str) -> Tensor:
        x = x @ self.state[f"{name}.weight"].T
        return x + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else x

    def head(self, x: Tensor, name: str, layers: str) -> Tensor:
        """`layers` has one letter per layer of the published code: linear, batch norm, ReLU."""
        for i, kind in enumerate(layers):
            where = f"{name}.{i}"
            x = self.linear(x, where) if kind == "l" else self.norm(x, where) if kind == "b" else x.relu()
        return x

    def step(self, loss: Tensor, update: Callable[[str, Tensor, Tensor], Tensor]) -> None:
        """w ← w − update(name, w, gradient)."""
        weights = self.weights()
        for (name, w), g in zip(weights.items(), torch.autograd.grad(loss, [*weights.values()]), strict=True):
            with torch.no_grad():
                w -= update(name, w, g)

    def momentum(self, name: str, g: Tensor) -> Tensor:
        self.momenta[name] = 0.9 * self.momenta[name] + g if name in self.momenta else g
        return self.momenta[name]

    def sgd(self, lr: float, decay: float, constant: tuple[str, float] = ("-", 0.0)) -> Callable[..., Tensor]:
        """SGD with momentum and decay on everything; `constant` is (prefix, its own rate)."""
        return lambda name, w, g: (
            (constant[1] if name.startswith(constant[0]) else lr) * self.momentum(name, g + decay * w)
        )

    def lars(self, lr: float, decay: float) -> Callable[..., Tensor]:
        def update(name: str, w: Tensor, g: Tensor) -> Tensor:
            if w.ndim > 1:
                g = g + decay * w
                g = g * (0.001 * math.sqrt((w**2).sum()) / math.sqrt((g**2).sum()))
            return lr * self.momentum(name, g)

        return update

    def average(self, target: str, online: str, tau: float) -> None:
        """target ← τ target + (1 − τ) online, weights alone."""
        mine = dict(self.net[target].named_parameters()) if target in self.net else self.state
        theirs = dict(self.net[online].named_parameters()) if online in self.net else self.state
        for name in theirs if online in self.net else [n for n in self.trained if n.startswith(f"{online}.")]:
            other = name if online in self.net else target + name[len(online) :]
            with torch.no_grad():
                mine[other].copy_(tau * mine[other] + (1 - tau) * theirs[name])

    def compare(self, found: dict[str, Tensor]) -> None:
        inside = {f"{n}.{k}": v for n, net in self.net.items() for k, v in net.state_dict().items()}
        expected = {**self.state, **inside}
        assert found.keys() == expected.keys()
        for name, value in found.items():
            gap = (value.double() - expected[name].detach().double()).abs().max().item()
            assert gap < 1e-9, f"{name} differs by {gap:.2g}"


def unit(x: Tensor) -> Tensor:
    return x / (x**2).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("layers", [2, 3])
def test_simclr(layers):
    method = small(SimCLR, SimCLRConfig(**SMALL, projection=4, head_layers=layers, temperature=0.3, weight_decay=0.01))
    plain = Plain(method, ("encoder",))
    for step in range(STEPS):
        both = torch.cat(views(step))  # one batch of 2n
        z = unit(plain.head(plain.net["encoder"](both), "projector", "lbr" * (layers - 1) + "lb"))
        similarity = (z @ z.T / 0.3).exp() * (1 - torch.eye(16, dtype=torch.float64))
        near = (z * z.roll(8, 0)).sum(1) / 0.3
        loss = (similarity.sum(1).log() - near).sum() / 16
        plain.step(loss, plain.lars(LR * (1 - step / TOTAL), 0.01))
    assert f"projector.{3 * layers - 2}.bias" not in plain.trained  # the last batch norm has no shift
    plain.compare(ours(method))


@pytest.mark.parametrize(("layers", "symmetric"), [(1, False), (2, True)])
def test_moco(layers, symmetric):
    config = MoCoConfig(**SMALL, projection=4, head_layers=layers, queue=11, ema=0.9, bn_splits=2, symmetric=symmetric)
    method = small(MoCo, config)
    method.queue.copy_(unit(method.queue))  # of length one in float64 too
    plain = Plain(method, ("encoder", "key_encoder"))
    head, parts = "l" if layers == 1 else "lrl", (slice(4), slice(4, 8))

    def in_parts(net: nn.Module, x: Tensor) -> Tensor:
        """Each half of `x` with its own statistics, then averaged; the weights are shared."""
        halves = [{k: v.clone() for k, v in net.named_buffers()} for _ in range(2)]
        first, second = (torch.func.functional_call(net, h, x[rows]) for h, rows in zip(halves, parts, strict=True))
        for name, buffer in net.named_buffers():
            one, other = (half[name] for half in halves)
            buffer.copy_((one + other) / 2 if one.is_floating_point() else one)
        return torch.cat([first, second])

    for step in range(STEPS):
        x1, x2 = views(step)
        torch.manual_seed(step)
        losses, new = [], []
        for query, key in [(x1, x2), (x2, x1)] if symmetric else [(x1, x2)]:
            q = unit(plain.head(in_parts(plain.net["encoder"], query), "projector", head))
            order = torch.randperm(8)
            with torch.no_grad():
                shuffled = unit(plain.head(in_parts(plain.net["key_encoder"], key[order]), "key_projector", head))
            k = torch.empty_like(shuffled)
            k[order] = shuffled
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ plain.state["queue"].T], 1) / 0.2
            losses.append((logits.exp().sum(1).log() - logits[:, 0]).mean())
            new += [*k]
        plain.step(sum(losses), plain.sgd(LR * (1 - step / TOTAL), config.weight_decay))
        plain.average("key_encoder", "encoder", 0.9)
        plain.average("key_projector", "projector", 0.9)
        for key in new:
            place = int(plain.state["queue_ptr"])
            plain.state["queue"][place] = key
            plain.state["queue_ptr"][0] = (place + 1) % 11
    plain.compare(ours(method))


def test_byol():
    method = small(BYOL, BYOLConfig(**SMALL, projection=4, hidden=6, ema=0.9, weight_decay=0.01))
    plain = Plain(method, ("encoder", "target_encoder"))
    for step in range(STEPS):
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * step / TOTAL) + 1) / 2
        p1, p2 = (
            plain.head(plain.head(plain.net["encoder"](x), "projector", "lbrl"), "predictor", "lbrl")
            for x in views(step)
        )
        with torch.no_grad():
            z1, z2 = (plain.head(plain.net["target_encoder"](x), "target_projector", "lbrl") for x in views(step))
        loss = sum(((unit(p) - unit(z)) ** 2).sum(1).mean() for p, z in ((p1, z2), (p2, z1)))
        plain.step(loss, plain.lars(LR * (1 - step / TOTAL), 0.01))
        plain.average("target_encoder", "encoder", tau)
        plain.average("target_projector", "projector", tau)
    assert "projector.0.bias" in plain.state and "projector.3.bias" not in plain.state
    plain.compare(ours(method))


@pytest.mark.parametrize("layers", [2, 3])
def test_simsiam(layers):
    config = SimSiamConfig(**SMALL, projection=6, predictor_hidden=3, head_layers=layers, weight_decay=0.01)
    method = small(SimSiam, config)
    plain = Plain(method, ("encoder",))
    for step in range(STEPS):
        z1, z2 = (plain.head(plain.net["encoder"](x), "projector", "lbr" * (layers - 1) + "lb") for x in views(step))
        p1, p2 = (plain.head(z, "predictor", "lbrl") for z in (z1, z2))
        loss = -sum((unit(p) * unit(z.detach())).sum(1).mean() for p, z in ((p1, z2), (p2, z1))) / 2
        plain.step(loss, plain.sgd(LR * (1 - step / TOTAL), 0.01, constant=("predictor.", LR)))
    assert "predictor.3.bias" in plain.state and f"projector.{3 * layers - 2}.weight" not in plain.state
    plain.compare(ours(method))


@pytest.mark.parametrize(
    ("method", "config", "samples", "size"),
    [
        (BYOL, BYOLConfig(**SMALL, hidden=4, projection=4), 1, 2),
        (SimSiam, SimSiamConfig(**SMALL, projection=4, predictor_hidden=4), 1, 2),
        (MoCo, MoCoConfig(**SMALL, queue=16, projection=4, bn_splits=4), 3, 8),
        (MoCo, MoCoConfig(**SMALL, queue=16, projection=4, bn_splits=4), 7, 8),
        (MoCo, MoCoConfig(**SMALL, queue=16, projection=4, bn_splits=1), 1, 2),
    ],
)
def test_a_batch_too_small_for_batch_norm_is_told_the_size_that_works(method, config, samples, size):
    network = method(config).train()
    with pytest.raises(ConfigError, match=f"use --batch-size {size} or more"):
        network({"views": [view.float() for view in views(0, samples)]}, 0.0)
    network({"views": [view.float() for view in views(0, size)]}, 0.0)


def test_simclr_trains_on_one_image_since_its_batch_norm_sees_both_views():
    simclr = SimCLR(SimCLRConfig(**SMALL, projection=4)).train()
    assert simclr({"views": [view.float() for view in views(0, 1)]}, 0.0)["loss"].isfinite()


def test_simclr_at_the_papers_temperature_finds_its_loss_scale_in_fp16_and_keeps_it(tmp_path):
    encoder = {"backbone": "resnet18", "width": 8, "small_stem": True, "image_size": 16, "crop_pct": 1.0}
    run = {"batch_size": 16, "epochs": 0.02, "warmup_epochs": 0.005, "precision": "fp16"}
    config = SimCLRConfig(**encoder, **run, crop_scale=(0.4, 1.0), temperature=0.1)
    Trial(RECIPES["simclr"], config).here(tmp_path / "run", checkpoint_minutes=60.0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [not math.isfinite(line["grad_norm"]) for line in lines]
    assert sum(skipped) >= 3, "the first scale would do: the test shows nothing"
    assert skipped == sorted(skipped, reverse=True) and not skipped[-1]
