"""Micro-batches whose rows have different numbers of targets take the step of the joined batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_core import distributed
from ssl_lm import BERT, GPT, T5, BERTConfig, GPTConfig, T5Config
from ssl_lm.loss import IGNORED
from ssl_testing import children
from ssl_train.fit import passes
from ssl_train.processes import process_group

SIZES = {"vocab_size": 40, "context": 16, "dim": 16, "depth": 1, "heads": 2, "dropout": 0.0}
SPECIAL = {"pad_token_id": 0, "unk_token_id": 1, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}
TARGETS = (2, 2, 1, 1)


def labels_of(number: tuple[int, ...]) -> Tensor:
    """(rows, 3): so many targets in each row, the others ignored."""
    drawn = torch.randint(5, 40, (len(number), 3), generator=torch.Generator().manual_seed(1))
    return drawn.masked_fill(torch.arange(3) >= torch.tensor(number)[:, None], IGNORED)


def bert(number=TARGETS):
    ids = torch.randint(5, 40, (len(number), 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": labels_of(number), "positions": torch.tensor([[1, 3, 5]] * len(number))}
    return BERT(BERTConfig(**SIZES, **SPECIAL)), batch


def t5(number=TARGETS):
    config = T5Config(**{**SIZES, "decoder_depth": 1, "head_dim": 8, "hidden": 32}, first_sentinel=39, sentinels=9)
    ids = torch.randint(5, 30, (len(number), 8), generator=torch.Generator().manual_seed(0))
    return T5(config), {"input_ids": ids, "labels": labels_of(number)}


def gpt(number=TARGETS):
    ids = torch.randint(5, 40, (len(number), 9), generator=torch.Generator().manual_seed(0))
    return GPT(GPTConfig(**SIZES)), {"input_ids": ids}


def cut(batch: dict[str, Tensor], *rows: int) -> list[dict[str, Tensor]]:
    """Micro-batches of so many rows."""
    split = {key: value.split(list(rows)) for key, value in batch.items()}
    return [{key: parts[i] for key, parts in split.items()} for i in range(len(rows))]


def gradient(method: torch.nn.Module, parts: list[dict[str, Tensor]]) -> Tensor:
    """Of the step that `fit` takes, over all parameters."""
    method.zero_grad()
    for batch, share in passes(method, parts):
        (method(batch, 0.0)["loss"] * share).backward()
    return torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


@pytest.mark.parametrize("make", [bert, t5, gpt])
@pytest.mark.parametrize("rows", [(2, 2), (1, 1, 1, 1)])
def test_accumulation_has_the_gradient_of_the_joined_batch(make, rows):
    torch.manual_seed(0)
    method, batch = make()
    method = method.double().train()
    torch.testing.assert_close(gradient(method, cut(batch, *rows)), gradient(method, [batch]), rtol=1e-9, atol=1e-12)


def test_a_micro_batch_without_any_target_counts_nothing():
    torch.manual_seed(0)
    method, batch = bert((3, 1, 0, 0))
    parts = cut(batch, 2, 2)
    assert [share for _, share in passes(method, parts)] == [1.0, 0.0]
    method = method.double().train()
    torch.testing.assert_close(gradient(method, parts), gradient(method, [batch]), rtol=1e-9, atol=1e-12)


def test_processes_with_different_numbers_of_targets_accumulate_the_same_gradient():
    def step() -> float:
        with process_group(60):
            torch.manual_seed(0)
            method, batch = bert((3, 2, 1, 1, 2, 3, 0, 1))
            method = method.double().train()
            own = cut(batch, 4, 4)[distributed.rank()]
            # DDP takes the mean over processes
            found = distributed.all_reduce_sum(gradient(method, cut(own, 2, 2))) / 2
        return (found - gradient(method, [batch])).abs().max().item()

    for ended in children.run_ranks(2, step):
        assert ended.code == 0 and ended.value < 1e-12, ended
