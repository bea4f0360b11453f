"""Our losses beside lightly's and pytorch-metric-learning's; where they differ, who is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ssl_contrastive import MoCo, MoCoConfig, byol_loss, info_nce_loss, nt_xent_loss, simsiam_loss


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same(ours: torch.Tensor, theirs: torch.Tensor, inputs: list[torch.Tensor], close: float = 1e-6) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert (mine - other).abs().max() < close


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_lightlys(temperature):
    loss = pytest.importorskip("lightly.loss")
    z = [rows(24, 16), rows(24, 16, seed=1)]
    same(nt_xent_loss(*z, temperature), loss.NTXentLoss(temperature=temperature)(*z), z)


def test_nt_xent_is_pytorch_metric_learnings_with_the_views_as_classes():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = [rows(24, 16), rows(24, 16, seed=1)]
    labels = torch.arange(24).repeat(2)
    same(nt_xent_loss(*z, 0.2), losses.NTXentLoss(temperature=0.2)(torch.cat(z), labels), z)


def test_info_nce_is_lightlys_with_its_memory_bank():
    loss = pytest.importorskip("lightly.loss")
    z = [rows(8, 16), rows(8, 16, seed=1)]
    theirs = loss.NTXentLoss(temperature=0.2, memory_bank_size=(40, 16))
    queue = F.normalize(rows(40, 16, seed=2).detach(), dim=1)
    theirs.memory_bank.bank.copy_(queue)
    query = z[0]
    same(info_nce_loss(query, z[1].detach(), queue, 0.2), theirs(query, z[1].detach()), [query])


def test_byol_and_simsiam_are_lightlys_negative_cosine_similarity():
    loss = pytest.importorskip("lightly.loss")
    cosine = loss.NegativeCosineSimilarity()
    p1, p2, z1, z2 = (rows(12, 8, seed=seed) for seed in range(4))
    same(byol_loss(p1, z2), 2 + 2 * cosine(p1, z2.detach()), [p1])
    theirs = 0.5 * (cosine(p1, z2.detach()) + cosine(p2, z1.detach()))
    same(simsiam_loss(p1, p2, z1, z2), theirs, [p1, p2])


def moco(queue: int) -> MoCo:
    encoder: dict[str, Any] = {"backbone": "resnet18", "width": 2, "small_stem": True, "image_size": 8}
    return MoCo(MoCoConfig(**encoder, queue=queue, projection=2, bn_splits=1, batch_size=4))


def numbered(first: int, last: int) -> torch.Tensor:
    """Keys with their number as their angle."""
    angle = torch.arange(first, last) / 100
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_a_full_ring_holds_the_newest_keys_where_lightlys_bank_drops_them():
    bank = pytest.importorskip("lightly.models.modules.memory_bank").MemoryBankModule(size=(10, 2))
    ours = moco(10)
    for start in range(0, 24, 4):
        ours.enqueue(numbered(start, start + 4))
        bank(numbered(start, start + 4), update=True)
    newest = numbered(14, 24)

    def holds(keys: torch.Tensor) -> list[int]:
        angles = torch.atan2(keys[:, 1], keys[:, 0])
        return sorted(int(x) for x in (100 * angles).round().tolist())

    assert holds(ours.queue) == holds(newest) == list(range(14, 24))
    assert holds(bank.bank) != holds(newest), "lightly keeps the newest keys now: drop this difference from the page"


def test_our_queue_is_saved_where_lightlys_bank_is_not():
    loss = pytest.importorskip("lightly.loss").NTXentLoss(memory_bank_size=(10, 2))
    loss(rows(4, 2), rows(4, 2, seed=1))
    assert "queue" in moco(10).state_dict()
    assert loss.state_dict() == {}, "lightly saves its bank now: drop this difference from the page"
