from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ssl_core.ema import ema_update, frozen_copy
from ssl_testing.state import differing


def pair():
    """A batch-normalised target and an online network that have seen different data."""
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    online = copy.deepcopy(target)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter += torch.randn_like(parameter)
    online(torch.randn(8, 3))
    online(torch.randn(8, 3))
    target(torch.randn(8, 3) + 5)
    return target, online


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_momentum_1_keeps_the_target_and_0_copies_the_online_network_bit_for_bit():
    target, online = pair()
    before = parameters(target)
    ema_update(target, online, 1.0)
    assert differing(parameters(target), before) == []
    ema_update(target, online, 0.0)
    assert differing(parameters(target), parameters(online)) == []


def test_k_updates_are_the_closed_form():
    target, online = (network.double() for network in pair())
    start, m = parameters(target), 0.9
    for _ in range(7):
        ema_update(target, online, m)
    for name, value in parameters(target).items():
        expected = m**7 * start[name] + (1 - m**7) * parameters(online)[name]
        assert (value - expected).abs().max() < 1e-12


def test_buffers_are_left_alone():
    target, online = pair()
    before = {name: value.clone() for name, value in target.named_buffers()}
    ema_update(target, online, 0.5)
    assert differing(dict(target.named_buffers()), before) == []


def test_the_online_network_is_never_changed_and_the_target_keeps_its_tensors():
    target, online = pair()
    before, places = state(online), [p.data_ptr() for p in target.parameters()]
    ema_update(target, online, 0.5)
    assert differing(state(online), before) == []
    assert [p.data_ptr() for p in target.parameters()] == places


def test_networks_of_different_names_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"target and online differ in \['bias'\]"):
        ema_update(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)


def test_a_module_without_parameters_is_no_error():
    ema_update(nn.ReLU(), nn.ReLU(), 0.5)


def test_a_frozen_copy_is_equal_apart_and_without_gradient():
    _, online = pair()
    teacher = frozen_copy(online)
    assert differing(state(teacher), state(online)) == []
    assert not any(p.requires_grad for p in teacher.parameters()) and all(p.requires_grad for p in online.parameters())
    with torch.no_grad():
        online[0].weight += 1
    assert not torch.equal(teacher[0].weight, online[0].weight)
