from __future__ import annotations

import pytest
import torch

from ssl_core import device
from ssl_core.config import ConfigError
from ssl_core.device import autocast, cpu_has_bf16, pick_device, pick_precision, seed_step

CPU = torch.device("cpu")


def test_the_best_device_here_is_picked_and_a_named_one_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == CPU == pick_device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda", 1) == pick_device("cuda:1")
    assert pick_device("cuda").type == "cuda"


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps", "tpu", "", "cuda:x"])
def test_a_device_that_is_not_there_is_an_error_of_the_user(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device = '{name}'"):
        pick_device(name)


def test_precision_follows_the_hardware(monkeypatch):
    cuda = torch.device("cuda")
    for has in (True, False):
        monkeypatch.setattr(device, "cpu_has_bf16", lambda has=has: has)
        assert pick_precision("auto", CPU) == ("bf16" if has else "fp32")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert pick_precision("auto", cuda) == ("bf16" if has else "fp16")
    assert pick_precision("auto", torch.device("mps")) == "fp32"
    assert pick_precision("fp32", cuda) == "fp32"
    assert isinstance(cpu_has_bf16(), bool)


def test_autocast_sets_the_type_of_products_and_nothing_in_fp32():
    a = torch.randn(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(precision, CPU):
            assert (a @ a).dtype == dtype


def test_a_step_is_seeded_by_all_of_its_key():
    draws = set()
    for key in ((0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 10), (10, 0), (2**62, 5)):
        seed_step(*key)
        first = torch.rand(4)
        seed_step(*key)
        assert torch.equal(torch.rand(4), first)
        draws.add(tuple(first.tolist()))
    assert len(draws) == 7
