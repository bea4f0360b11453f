"""The cost of a run, foretold: counted exactly where it can be, measured where it cannot."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from ssl_core.config import ImageConfig, TrainConfig
from ssl_core.method import Recipe
from ssl_train.asked import Asked
from ssl_train.cli import commands
from ssl_train.cli.estimate import _duration, estimate, matmul_rate
from ssl_train.cli.verbs import Info
from ssl_train.cost import cost_of, on_meta, sample, step_cost


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ImageConfig, TrainConfig):
    image_size: int | tuple[int, int] = 8
    patch_size: int = 4
    batch_size: int = 16
    epochs: float = 2
    precision: str = "fp32"  # type: ignore[assignment]


class Toy(nn.Module):
    """192 -> 10 -> 1 with a frozen vector."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = nn.Linear(192, 10, bias=False), nn.Linear(10, 1, bias=False)
        self.fixed = nn.Parameter(torch.zeros(7), requires_grad=False)

    def forward(self, batch: dict, progress: float) -> dict[str, torch.Tensor]:
        x = batch["views"][0].flatten(1).float()
        return {"loss": self.second(self.first(x)).mean()}


class Pictures:
    classes = labels = None

    def __len__(self) -> int:
        return 100


def build(config: ToyConfig):
    return lambda picture, rng: {"views": [picture["image"]], "noise": torch.from_numpy(rng.random(4))}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    module = types.ModuleType("toy_method")
    vars(module).update(
        ToyConfig=ToyConfig, Toy=Toy, build=build, PRESETS={"toy": {"demo": ToyConfig, "long": lambda: ToyConfig(epochs=3)}},
        open=lambda data, *, config, split: Pictures(),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "toy_method", module)
    return Recipe(
        name="toy", package="toy", config="toy_method:ToyConfig", method="toy_method:Toy",
        views="toy_method:build", show="toy_method:show", source="toy_method:open",
    )  # fmt: skip


def test_sample_is_a_batch_of_one_as_the_views_make_it(recipe):
    batch = sample(recipe, ToyConfig(image_size=(8, 12)))
    assert batch["views"][0].shape == (1, 3, 8, 12)
    assert batch["views"][0].dtype == torch.uint8
    assert batch["noise"].tolist() == [np.random.default_rng(0).random(4).tolist()]


def test_multiply_adds_and_kept_bytes_are_counted_exactly(recipe):
    with torch.device("meta"):
        method = Toy(ToyConfig())
    flops, activations, _ = step_cost(method, sample(recipe, ToyConfig()))
    assert flops == 192 * 10 + 10
    assert activations == 4 * (192 + 10), "the inputs of both products, in fp32; weights are not counted again"


def test_an_input_that_two_layers_keep_is_counted_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 2, device="meta"), nn.Linear(6, 2, device="meta")

        def forward(self, batch, progress):
            x = batch["views"][0].float()
            return {"loss": (self.a(x) + self.b(x)).sum()}

    flops, activations, _ = step_cost(Twice(), {"views": [torch.zeros(1, 6)]})
    assert (flops, activations) == (24, 24)


def test_the_copy_on_meta_is_the_same_network_without_values():
    method = Toy(ToyConfig())
    copied = on_meta(method)
    assert {name: (p.shape, p.requires_grad) for name, p in copied.named_parameters()} == {
        name: (p.shape, p.requires_grad) for name, p in method.named_parameters()
    }
    assert all(p.is_meta for p in copied.parameters()) and not any(p.is_meta for p in method.parameters())


def test_description_names_parameters_work_memory_and_time(recipe, monkeypatch):
    monkeypatch.setattr("ssl_train.cli.estimate.matmul_rate", lambda device, precision: 1e6)
    method, cpu = Toy(ToyConfig()), torch.device("cpu")
    found, text = estimate(recipe, method, cost_of(recipe, method, cpu), cpu, 100)
    lines = text.splitlines()
    assert lines[0] == "toy: 1,937 parameters, 1,930 trained"
    assert "in fp32" in lines[3]
    seconds = 3 * 1930 * 16 / (0.6 * 1e6)
    assert lines[3].endswith(f"about {seconds:.2g} s a step")
    assert lines[4].startswith("100 samples, 12 steps of 16: about")
    assert (found["trained"], found["steps"], found["seconds"]) == (1930, 12, pytest.approx(12 * seconds))


def test_without_data_only_the_demo_knows_its_steps(recipe, monkeypatch, capsys):
    monkeypatch.setattr("ssl_train.cli.estimate.matmul_rate", lambda device, precision: 1e6)
    for preset, data, steps in (("demo", None, 12), ("long", None, None), ("long", "folder", 18)):
        commands.info(recipe, Info(preset=preset, data=data, device="cpu"), Asked(recipe.preset(preset)))
        said = capsys.readouterr().out
        assert ("samples" not in said) if steps is None else (f"100 samples, {steps} steps" in said)


def test_the_rate_of_this_machine_is_measured():
    assert 1e8 < matmul_rate(torch.device("cpu"), "fp32") < 1e14


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (100, "1e+02 s"), (121, "2.0 min"), (7300, "2.0 h"), (3 * 86400, "3.0 days")],
)
def test_durations_are_in_the_unit_that_suits(seconds, text):
    assert _duration(seconds) == text
