"""MoCo's queue of keys, and batch norm over shuffled parts of the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ssl_contrastive import MoCo, MoCoConfig
from ssl_contrastive.config import RECIPES
from ssl_contrastive.split_norm import SplitBatchNorm, split_batch_norm
from ssl_testing import faults
from ssl_testing.state import newest
from ssl_testing.trial import Trial

SMALL: dict[str, Any] = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 8, "batch_size": 8}


def moco(**fields: Any) -> MoCo:
    torch.manual_seed(0)
    return MoCo(MoCoConfig(**{**SMALL, "queue": 10, "projection": 2, "bn_splits": 2, **fields}))


def numbered(first: int, last: int) -> torch.Tensor:
    return torch.arange(first, last, dtype=torch.float32)[:, None].expand(-1, 2)


@pytest.mark.parametrize(
    "batches", [[4] * 6, [1, 2, 3, 4, 5, 9], [10, 10, 4], [24], [3, 21], [11, 13], [25 - 1]], ids=str
)
def test_the_queue_holds_the_last_keys_for_any_batch_sizes(batches):
    method, start = moco(), 0
    for size in batches:
        method.enqueue(numbered(start, start + size))
        start += size
    assert sorted(method.queue[:, 0].tolist()) == list(range(14, 24))
    oldest = int(method.queue_ptr)
    assert method.queue.roll(-oldest, 0)[:, 0].tolist() == list(range(14, 24)), "the ring is out of order"


def test_the_queue_changes_after_the_step_but_not_in_eval_mode():
    method = moco()
    views = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    before = method.queue.clone()
    method.eval()({"views": views}, 0.0)
    method.after_step(0.0)
    assert torch.equal(method.queue, before) and int(method.queue_ptr) == 0
    method.train()({"views": views}, 0.0)["loss"].backward()
    assert torch.equal(method.queue, before), "the loss is against the old queue"
    method.after_step(0.0)
    assert int(method.queue_ptr) == 8 and torch.equal(method.queue[8:], before[8:])
    assert torch.allclose(method.queue[:8].norm(dim=1), torch.ones(8))


def test_keys_come_back_in_the_order_of_their_queries():
    method = moco(bn_splits=1)
    for module in method.modules():  # running statistics: a key depends on its own image alone
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        plain = method.key_projector(method.key_encoder(images))
    assert torch.allclose(method.encode_keys(images, [8]), nn.functional.normalize(plain, dim=1), atol=1e-6)


def test_the_queue_survives_a_resume(tmp_path):
    config = MoCoConfig(**{**SMALL, "queue": 37, "projection": 4, "bn_splits": 2, "epochs": 2.5, "precision": "fp32"})
    recipe = dataclasses.replace(RECIPES["moco"], source="ssl_testing.tiny:open_pictures")
    trial = Trial(recipe, config)
    assert trial.train(tmp_path / "whole").code == 0
    killed = trial.train(tmp_path / "run", faults.kill(6))
    assert killed.code < 0 and newest(tmp_path / "run").name == "step-000006"
    stored = load_file(newest(tmp_path / "run") / "model.safetensors")
    assert int(stored["queue_ptr"]) == 48 % 37 and stored["queue"].norm(dim=1).allclose(torch.ones(37), atol=1e-6)
    fresh = load_file(tmp_path / "whole" / "checkpoints" / newest(tmp_path / "whole").name / "model.safetensors")
    assert not torch.equal(stored["queue"], fresh["queue"])
    assert trial.train(tmp_path / "run").code == 0
    resumed = load_file(newest(tmp_path / "run") / "model.safetensors")
    assert torch.equal(resumed["queue"], fresh["queue"]) and torch.equal(resumed["queue_ptr"], fresh["queue_ptr"])


@pytest.mark.parametrize(("n", "splits"), [(8, 2), (8, 4), (9, 2), (8, 1)])
def test_split_batch_norm_is_batch_norm_of_each_part(n, splits):
    torch.manual_seed(0)
    x, into = torch.randn(n, 3, 2, 2, dtype=torch.float64), torch.randn(n, 3, 2, 2, dtype=torch.float64)
    split = split_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), splits).double()
    assert isinstance(split[0], SplitBatchNorm)  # type: ignore[index]
    mine = x.clone().requires_grad_()
    out = split(mine)
    (out * into).sum().backward()
    parts, means, variances = [], [], []
    theirs = x.clone().requires_grad_()
    for part in theirs.tensor_split(splits):
        norm = nn.BatchNorm2d(3).double()
        parts.append(norm(part))
        means.append(norm.running_mean)
        variances.append(norm.running_var)
    (torch.cat(parts) * into).sum().backward()
    assert torch.allclose(out, torch.cat(parts), atol=1e-14) and torch.allclose(mine.grad, theirs.grad, atol=1e-14)
    assert torch.allclose(split[0].running_mean, torch.stack(means).mean(0))  # type: ignore[index]
    assert torch.allclose(split[0].running_var, torch.stack(variances).mean(0))  # type: ignore[index]


def test_a_query_and_its_key_are_normalised_with_different_images():
    """Without a shuffle the same images share batch norm statistics in both networks, which gives
    the positive away.
    """
    torch.manual_seed(3)
    parts = []
    method = moco(bn_splits=2)
    method.key_encoder.register_forward_pre_hook(lambda module, inputs: parts.append(inputs[0][:4]))
    images = torch.randn(8, 3, 8, 8)
    for _ in range(4):
        method.encode_keys(images, [8])
    same = [all(any(torch.equal(x, y) for y in images[:4]) for x in part) for part in parts]
    assert not all(same)
