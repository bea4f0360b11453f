"""The loss without logits, against plain Python, its definition and itself in two processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_core import distributed
from ssl_lm.loss import cross_entropy, linear_cross_entropy, linear_nll
from ssl_testing import children
from ssl_train.processes import process_group


def inputs(n=23, d=7, v=31, dtype=torch.float64, seed=0):
    """hidden (n, d), weight (v, d), bias (v,), labels (n,) of which every third is -100."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*s, generator=g, dtype=dtype) for s in ((n, d), (v, d), (v,)))
    labels = torch.randint(v, (n,), generator=g)
    labels[::3] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels


def test_the_loss_is_the_mean_of_minus_log_p_over_the_labels_that_count():
    hidden, weight, bias, labels = inputs()
    total, count = 0.0, 0
    for h, y in zip(hidden.tolist(), labels.tolist(), strict=True):
        if y == -100:
            continue
        z = [
            sum(a * b for a, b in zip(h, w, strict=True)) + c
            for w, c in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        total += math.log(sum(map(math.exp, z))) - z[y]
        count += 1
    for loss in (cross_entropy, linear_cross_entropy):
        assert loss(hidden, weight, labels, bias).item() == pytest.approx(total / count, rel=1e-12)
    assert linear_nll(hidden, weight, labels, bias).sum().item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 23, 100, None])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_are_those_of_the_definition_for_any_number_of_rows(rows, biased):
    hidden, weight, bias, labels = inputs()
    wanted = (hidden, weight, bias) if biased else (hidden, weight)
    ours = 3 * linear_cross_entropy(hidden, weight, labels, bias if biased else None, rows=rows)
    whole = 3 * cross_entropy(hidden, weight, labels, bias if biased else None)
    for a, b in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(whole, wanted), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_a_frozen_head_gets_no_gradient_and_no_grad_gives_none():
    hidden, weight, _, labels = inputs()
    linear_cross_entropy(hidden, weight.detach(), labels).backward()
    assert weight.grad is None and hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels).requires_grad


def test_without_a_label_the_loss_and_its_gradient_are_zero():
    hidden, weight, bias, labels = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100), bias)
    assert loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (hidden, weight, bias)))


def test_a_second_backward_pass_is_an_error():
    hidden, weight, _, labels = inputs()
    loss = linear_cross_entropy(hidden, weight, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace|in-place"):
        loss.backward()


def test_labels_may_be_any_slice_of_a_batch():
    hidden, weight, _, _ = inputs(n=24)
    tokens = torch.randint(31, (4, 7))
    loss = linear_cross_entropy(hidden.view(4, 6, 7), weight, tokens[:, 1:])
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, tokens[:, 1:].reshape(-1)))


def test_under_autocast_the_products_are_bf16_and_the_sums_fp32():
    hidden, weight, bias, labels = inputs(n=64, d=16, v=50, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, bias)
    assert loss.dtype == torch.float32
    exact = linear_cross_entropy(hidden, weight, labels, bias)
    gradients = zip(*(torch.autograd.grad(x, (hidden, weight, bias)) for x in (loss, exact)), strict=True)
    assert 0 < abs(loss - exact).item() < 0.02 * exact.item()
    for a, b in gradients:
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that was made inside."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_the_whole_logits_are_never_built():
    hidden, weight, _, labels = inputs(n=4096, d=4, v=2000, dtype=torch.float32)
    with Largest() as ours:
        linear_cross_entropy(hidden, weight, labels).backward()
    with Largest() as whole:
        F.cross_entropy(F.linear(hidden, weight), labels).backward()
    assert whole.numbers == 4096 * 2000
    assert ours.numbers <= 4096 * 2000 / 7


def test_the_mean_over_ranks_with_unequal_numbers_of_labels_is_exact():
    hidden, weight, _, labels = inputs(n=24)
    labels[:12] = -100
    labels[3] = 1
    whole = cross_entropy(hidden, weight, labels)
    expected = torch.autograd.grad(whole, weight)[0]

    def step():
        with process_group(60):
            part = slice(12 * distributed.rank(), 12 * distributed.rank() + 12)
            loss = linear_cross_entropy(hidden[part], weight, labels[part])
            [gradient] = torch.autograd.grad(loss, weight)
            return loss.item(), gradient.tolist()

    ranks = children.run_ranks(2, step)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    losses, gradients = zip(*(rank.value for rank in ranks), strict=True)
    assert sum(losses) / 2 == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(torch.tensor(gradients, dtype=torch.float64).mean(0), expected, atol=1e-12, rtol=1e-10)
    assert losses[0] != pytest.approx(losses[1], rel=0.1), "the ranks hold the same: the test shows nothing"
