"""The memory that a run takes is asked before it starts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ssl_testing.tiny import RECIPES, Tiny, TinyConfig
from ssl_train import cost as costs
from ssl_train.asked import Asked
from ssl_train.cost import Cost, NotEnoughMemory, check_memory, cost_of
from ssl_train.machine import free_memory
from ssl_train.options import RunOptions
from ssl_train.run import train

RECIPE = RECIPES["tiny"]
CPU = torch.device("cpu")
MEMINFO = "MemTotal:       64 kB\nMemAvailable:       40 kB\n"


def machine(tmp_path, *, limit=None, used=0, cached=0, version=2):
    """free_memory on a CPU of a made-up system."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    if limit is not None:
        names = {
            2: ("memory.max", "memory.current", "memory.stat", "inactive_file"),
            1: (
                "memory/memory.limit_in_bytes",
                "memory/memory.usage_in_bytes",
                "memory/memory.stat",
                "total_inactive_file",
            ),
        }[version]
        for name, text in zip(names, (str(limit), str(used), f"{names[3]} {cached}\n"), strict=False):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
    return free_memory(CPU, cgroup=tmp_path, meminfo=tmp_path / "meminfo")


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_limit_leaves_beside_cached_files(tmp_path, version):
    assert machine(tmp_path, limit=30_000, used=12_000, cached=2_000, version=version) == 20_000


def test_a_machine_without_a_limit_has_what_is_available(tmp_path):
    assert machine(tmp_path) == 40 * 1024
    assert machine(tmp_path, limit="max") == 40 * 1024
    assert machine(tmp_path, limit=2**60) == 40 * 1024


def test_a_system_that_does_not_say_is_not_asked(tmp_path):
    assert free_memory(CPU, cgroup=tmp_path, meminfo=tmp_path / "none") is None


def test_this_machine_says_how_much_it_has():
    free = free_memory(CPU)
    assert free is None or 10**7 < free < 10**14


def test_cost_grows_with_the_batch_and_says_which_batch_fits():
    cost = Cost(multiply_adds=0, activations=10.0, fixed=100)
    assert cost.bytes(8) == 180
    assert [cost.fitting(free) for free in (99, 100, 110, 180, 259, 260)] == [0, 0, 1, 8, 8, 16]


def test_weights_gradients_and_averages_are_counted_once():
    method = Tiny(TinyConfig())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    held = sum(4 * p.numel() for p in method.parameters()) + sum(b.nbytes for b in method.buffers())
    assert cost_of(RECIPE, method, CPU).fixed == costs.ALWAYS + held + 12 * trained


def test_half_the_precision_saves_less():
    def activations(precision):
        return cost_of(RECIPE, Tiny(TinyConfig(precision=precision)), CPU).activations

    assert activations("bf16") == pytest.approx(costs.SAVED_IN_HALF * activations("fp32"))


def test_a_run_that_does_not_fit_is_refused_with_what_does(monkeypatch, tmp_path):
    method = Tiny(TinyConfig(batch_size=64))
    cost = cost_of(RECIPE, method, CPU)
    monkeypatch.setattr(costs, "free_memory", lambda device: int(cost.bytes(20)))
    with pytest.raises(NotEnoughMemory, match="--batch-size 16, or --accumulate 4 .* --force"):
        check_memory(cost, method, CPU, parts=1)
    check_memory(cost, method, CPU, parts=4)
    monkeypatch.setattr(costs, "free_memory", lambda device: cost.fixed)
    with pytest.raises(NotEnoughMemory, match="a smaller network or smaller images, or --force"):
        check_memory(cost, method, CPU, parts=1)

    # Nothing is left behind, and --force goes on.
    config = TinyConfig(epochs=0.2, warmup_epochs=0.0)
    run = {"data": None, "out": tmp_path / "run"}
    with pytest.raises(NotEnoughMemory):
        train(RECIPE, config, **run, options=RunOptions(device="cpu", workers=0))
    assert not (tmp_path / "run").exists()
    train(RECIPE, config, **run, options=RunOptions(device="cpu", workers=0, force=True))


def test_a_chosen_batch_fits_into_memory(monkeypatch):
    from ssl_testing.tiny import Pictures
    from ssl_train import auto

    config = dataclasses.replace(RECIPE.preset("demo"), image_size=32, precision="fp32")
    free = cost_of(RECIPE, Tiny(config), CPU).bytes(20) / auto.MEMORY
    monkeypatch.setattr(auto, "free_memory", lambda device: int(free))
    monkeypatch.setattr(auto, "pace", lambda *_: 0.01)
    chosen, choices = auto.settled(RECIPE, Asked(), Pictures(5000, size=(32, 32)), None, CPU)
    assert chosen.batch_size in (8, 16)
    assert "free memory" in {row.name: row.why for row in choices}["batch_size"]
