"""Several processes over gloo, also of different batch sizes, equal one with the joined batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_contrastive import (
    BYOL,
    BYOLConfig,
    MoCo,
    MoCoConfig,
    SimCLR,
    SimCLRConfig,
    SimSiam,
    SimSiamConfig,
    byol_loss,
    info_nce_loss,
    nt_xent_loss,
    simsiam_loss,
)
from ssl_core import distributed
from ssl_core.config import ConfigError
from ssl_core.device import seed_step
from ssl_testing import children
from ssl_testing.faults import KeepDouble
from ssl_testing.state import apart
from ssl_train.fit import wrap
from ssl_train.processes import process_group

ENCODER: dict[str, Any] = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 8}
SMALL = ENCODER | {"batch_size": 8, "warmup_epochs": 0.0}
VIT = SMALL | {"backbone": "vit", "patch_size": 4, "dim": 16, "depth": 1, "heads": 2}
METHODS = {
    "simclr": (SimCLR, SimCLRConfig(**SMALL, projection=4)),
    "byol": (BYOL, BYOLConfig(**SMALL, hidden=6, projection=4, ema=0.9)),
    "simsiam": (SimSiam, SimSiamConfig(**SMALL, projection=6, predictor_hidden=3)),
    "moco with layer norm": (MoCo, MoCoConfig(**VIT, projection=4, queue=9, ema=0.9, bn_splits=2)),
    "moco": (MoCo, MoCoConfig(**SMALL, projection=4, queue=9, ema=0.9, bn_splits=4, symmetric=True)),
}


def on_ranks(function: Any, world: int = 2) -> None:
    def inside() -> None:
        with process_group(60):
            function()

    for ended in children.run_ranks(world, inside):
        assert ended.code == 0, ended


def one_step(name: str, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Loss, gradients and the state after a step of this rank's share of a batch."""
    method_class, config = METHODS[name]
    torch.set_default_dtype(torch.float64)
    rank = distributed.rank()
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]) if distributed.is_on() else None)
    generator = torch.Generator().manual_seed(5)
    views = [torch.randn(sum(sizes), 3, 8, 8, generator=generator)[rows] for _ in range(2)]
    with KeepDouble():
        seed_step(0)
        method = method_class(config).double().train()
        model = wrap(method, torch.device("cpu"))
        seed_step(0, 1, rank)
        loss = model({"views": views}, 0.25)["loss"]
        loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        getattr(method, "after_step", lambda progress: None)(0.25)
    gradients = {f"gradient of {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    joined = distributed.all_reduce_sum(loss.detach().clone()) / distributed.world_size()
    return {"loss": joined, **gradients, **{k: v.clone() for k, v in method.state_dict().items()}}


STEPS = {(4, 4): [*METHODS], (5, 3): [name for name in METHODS if name != "moco"]}  # parts of 2 do not fit into 5 and 3


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, ...]], Path]:
    """The folder with one step of all methods: on ranks of these sizes, and on one process."""

    @cache
    def step_all(sizes: tuple[int, ...]) -> Path:
        folder = tmp_path_factory.mktemp("steps")

        def write(what: str) -> None:
            for name in STEPS[sizes]:
                save_file(one_step(name, sizes), folder / f"{name}-{what}{distributed.rank()}.safetensors")

        on_ranks(lambda: write("rank"))
        ended = children.run(lambda: write("one"))
        assert ended.code == 0, ended
        return folder

    return step_all


@pytest.mark.parametrize(("name", "sizes"), [(name, sizes) for sizes, names in STEPS.items() for name in names])
def test_a_step_of_two_ranks_is_that_of_the_joined_batch(name, sizes, stepped):
    folder = stepped(sizes)
    one = load_file(folder / f"{name}-one0.safetensors")
    assert any(key.startswith("gradient of encoder.") for key in one)
    for rank in (0, 1):
        lines = apart(load_file(folder / f"{name}-rank{rank}.safetensors"), one, 1e-10)
        assert not lines, "\n".join(lines[:8])


LOSSES = {
    "nt_xent": (2, lambda a, b: nt_xent_loss(a, b, 0.2)),
    "info_nce": (2, lambda a, b: info_nce_loss(a, b, torch.eye(6, dtype=torch.float64), 0.2)),
    "byol": (2, byol_loss),
    "simsiam": (4, simsiam_loss),
}


def loss_inputs(name: str, n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 6, dtype=torch.float64, generator=generator) for _ in range(LOSSES[name][0])]


@pytest.fixture(scope="module", params=[(5, 5), (7, 3), (0, 4), (2, 3, 1)], ids=str)
def losses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[int, ...], Path]:
    """The rows of each rank, and the folder with value and gradients of all losses on them."""
    sizes, folder = request.param, tmp_path_factory.mktemp("losses")

    def on_a_rank() -> None:
        rank = distributed.rank()
        for name, (_, loss) in LOSSES.items():
            inputs = loss_inputs(name, sum(sizes))
            own = [x.split(list(sizes))[rank].clone().requires_grad_() for x in inputs]
            value = loss(*own)
            value.backward()
            found = {str(i): x.grad for i, x in enumerate(own) if x.grad is not None}
            save_file({"value": value.detach(), **found}, folder / f"{name}-{rank}.safetensors")

    on_ranks(on_a_rank, len(sizes))
    return sizes, folder


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_ranks_has_value_and_gradient_of_the_joined_batch(name, losses):
    sizes, folder = losses
    joined = [x.requires_grad_() for x in loss_inputs(name, sum(sizes))]
    expected = LOSSES[name][1](*joined)
    expected.backward()
    found = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(len(sizes))]
    assert sum(f["value"] for f in found) / len(sizes) == pytest.approx(expected.item(), abs=1e-12)
    for i, x in enumerate(joined):
        if x.grad is not None:
            gradient = torch.cat([f[str(i)] for f in found]) / len(sizes)  # DDP's mean
            assert (gradient - x.grad).abs().max() < 1e-12


def test_processes_that_do_not_divide_the_parts_are_refused():
    def step() -> None:
        method = MoCo(MoCoConfig(**SMALL, projection=4, queue=9, bn_splits=3))
        with pytest.raises(ConfigError, match="bn_splits = 3: 2 processes"):
            method({"views": [torch.randn(4, 3, 8, 8)] * 2}, 0.0)

    on_ranks(step)
