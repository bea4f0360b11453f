"""The four losses against plain Python, closed forms, and the dense form of the same loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_contrastive import byol_loss, info_nce_loss, nt_xent_loss, simsiam_loss
from ssl_contrastive.loss import NARROW, batch_mean, sum_log_sum_exp_among, unit
from ssl_contrastive.moco import dense_info_nce
from ssl_contrastive.simclr import dense_nt_xent
from ssl_core import distributed
from ssl_testing import children
from ssl_train.processes import process_group

F64 = torch.float64


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = F64, grad: bool = False) -> Tensor:
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 3
    return x.requires_grad_(grad)


def cos(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def plain_nt_xent(z1: list, z2: list, temperature: float) -> float:
    """Equation 1 of arXiv 2002.05709 in loops over numbers."""
    z, n = z1 + z2, len(z1)
    total = 0.0
    for i in range(2 * n):
        other = (i + n) % (2 * n)
        below = sum(math.exp(cos(z[i], z[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(cos(z[i], z[other]) / temperature) / below)
    return total / (2 * n)


def plain_info_nce(query: list, key: list, queue: list, temperature: float) -> float:
    """Equation 1 of arXiv 1911.05722 in loops over numbers."""
    total = 0.0
    for q, k in zip(query, key, strict=True):
        near = math.exp(cos(q, k) / temperature)
        total -= math.log(near / (near + sum(math.exp(cos(q, other) / temperature) for other in queue)))
    return total / len(query)


# One row at a time, a few rows that do not divide the batch, and the device's own size.
in_blocks = pytest.mark.parametrize("block", [1, 7, 64, 500, 0])


@in_blocks
@pytest.mark.parametrize("temperature", [0.02, 0.025, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_nt_xent_equals_plain_python(n, temperature, block):
    z1, z2 = rows(n, 3), rows(n, 3, seed=1)
    expected = plain_nt_xent(z1.tolist(), z2.tolist(), temperature)
    assert nt_xent_loss(z1, z2, temperature, block=block).item() == pytest.approx(expected, abs=1e-12)
    assert dense_nt_xent(z1, z2, temperature).item() == pytest.approx(expected, abs=1e-12)


@in_blocks
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 9), (9, 2)])
def test_info_nce_equals_plain_python(n, k, temperature, block):
    query, key, queue = rows(n, 3), rows(n, 3, seed=1), rows(k, 3, seed=2)
    expected = plain_info_nce(query.tolist(), key.tolist(), queue.tolist(), temperature)
    loss = info_nce_loss(query, key, queue, temperature, block=block)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert dense_info_nce(query, key, queue, temperature).item() == pytest.approx(expected, abs=1e-12)


def test_byol_and_simsiam_equal_plain_python():
    p1, p2, z1, z2 = (rows(5, 4, seed=seed) for seed in range(4))
    pairs = [list(zip(p.tolist(), z.tolist(), strict=True)) for p, z in ((p1, z2), (p2, z1))]
    near = [sum(cos(p, z) for p, z in pair) / 5 for pair in pairs]
    assert byol_loss(p1, z2).item() == pytest.approx(2 - 2 * near[0], abs=1e-12)
    assert simsiam_loss(p1, p2, z1, z2).item() == pytest.approx(-0.5 * (near[0] + near[1]), abs=1e-12)


@in_blocks
@pytest.mark.parametrize(("dtype", "close"), [(F64, 1e-13), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("loss", ["nt_xent", "info_nce"])
def test_gradients_in_blocks_equal_those_of_the_dense_form(loss, dtype, close, block):
    ours, dense = (nt_xent_loss, dense_nt_xent) if loss == "nt_xent" else (info_nce_loss, dense_info_nce)
    sizes = (33, 33) if loss == "nt_xent" else (33, 33, 50)
    inputs = [rows(n, 16, seed=seed, dtype=dtype, grad=True) for seed, n in enumerate(sizes)]
    value, expected = ours(*inputs, 0.2, block=block), dense(*inputs, 0.2)
    assert value.dtype is dtype and value.item() == pytest.approx(expected.item(), rel=10 * close)
    found = torch.autograd.grad(3 * value, inputs)
    for mine, theirs in zip(found, torch.autograd.grad(3 * expected, inputs), strict=True):
        assert (mine - theirs).abs().max() < close


@pytest.mark.parametrize("kept", [0, 100, 500])
@pytest.mark.parametrize("block", [1, 100, 300, 0])
def test_exponentials_computed_again_give_the_same_bits_as_those_kept(block, kept):
    z = unit(rows(33, 16, grad=True))
    value, expected = (sum_log_sum_exp_among(z, 5.0, block=block, kept=k) for k in (kept, 2**24))
    assert torch.equal(value, expected)
    [grad], [expected_grad] = (torch.autograd.grad(x, [z]) for x in (value, expected))
    assert torch.equal(grad, expected_grad)


def test_no_gradient_for_inputs_that_do_not_require_it():
    query, key, queue = rows(4, 3, grad=True), rows(4, 3, seed=1), rows(6, 3, seed=2)
    info_nce_loss(query, key, queue, 0.2).backward()
    assert query.grad is not None and key.grad is None and queue.grad is None
    with torch.no_grad():
        assert not nt_xent_loss(query, key, 0.2).requires_grad


def test_opposite_rows_are_exact_in_fp32_at_the_largest_scale_with_one_maximum():
    axis = torch.eye(4)[:1].requires_grad_()
    value = nt_xent_loss(axis, -axis.detach(), 1 / NARROW)
    assert value.item() == pytest.approx(0, abs=1e-5)  # each has one other, its partner: log(e^-40) + 40
    [grad] = torch.autograd.grad(value, [axis])
    assert grad.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_embeddings_have_a_finite_fp32_loss_at_a_small_temperature(dtype):
    z = rows(8, 16, dtype=dtype, grad=True)
    with torch.autocast("cpu", dtype):
        for loss in (
            nt_xent_loss(z, z.roll(1, 0), 0.02),
            info_nce_loss(z, z, z.detach(), 0.02),
            byol_loss(z, z.roll(1, 0)),
        ):
            assert loss.dtype is torch.float32 and torch.isfinite(loss)
            [grad] = torch.autograd.grad(loss, [z])
            assert grad.dtype is dtype and torch.isfinite(grad).all()
    exact = nt_xent_loss(z.double(), z.double().roll(1, 0), 0.02)
    with torch.autocast("cpu", dtype):
        assert nt_xent_loss(z, z.roll(1, 0), 0.02).item() == pytest.approx(exact.item(), rel=1e-4)


# Closed forms


def test_nt_xent_of_orthonormal_pairs():
    z = torch.eye(32, dtype=F64)
    assert nt_xent_loss(z, z, 0.5).item() == pytest.approx(math.log(1 + 62 * math.exp(-2)), abs=1e-12)
    assert nt_xent_loss(z, z, 0.5).item() == pytest.approx(2.239729, abs=1e-6)


def test_nt_xent_of_equal_rows_is_the_logarithm_of_the_number_of_others():
    z = torch.ones(256, 8, dtype=F64)
    assert nt_xent_loss(z, z, 0.1).item() == pytest.approx(6.236370, abs=1e-6)


def test_nt_xent_is_smallest_for_a_simplex():
    n, temperature = 8, 0.5
    z = torch.eye(n, dtype=F64) - 1 / n
    lowest = math.log(1 + (2 * n - 2) * math.exp(-n / ((n - 1) * temperature)))
    assert lowest == pytest.approx(0.885345, abs=1e-6)
    assert nt_xent_loss(z, z, temperature).item() == pytest.approx(lowest, abs=1e-12)
    found = rows(2, n, n, grad=True)
    optimizer = torch.optim.LBFGS(
        [found], max_iter=300, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = nt_xent_loss(found[0], found[1], temperature)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert closure() == pytest.approx(lowest, abs=1e-6) and closure() > lowest - 1e-12


def test_nt_xent_of_opposite_pairs():
    z = torch.eye(8, dtype=F64)
    assert nt_xent_loss(z, -z, 0.5).item() == pytest.approx(4.648678, abs=1e-6)


def test_nt_xent_ignores_the_lengths_of_rows_and_the_order_of_views():
    z1, z2 = rows(6, 5, grad=True), rows(6, 5, seed=1, grad=True)
    scale = torch.linspace(0.01, 100, 6, dtype=F64)[:, None]
    loss = nt_xent_loss(z1, z2, 0.3)
    assert nt_xent_loss(scale * z1, z2, 0.3).item() == pytest.approx(loss.item(), abs=1e-13)
    assert nt_xent_loss(z2, z1, 0.3).item() == pytest.approx(loss.item(), abs=1e-13)
    grad, _ = torch.autograd.grad(loss, [z1, z2])
    assert (grad * z1).sum(1).abs().max() < 1e-15


def test_info_nce_against_an_orthogonal_queue():
    q, queue = torch.eye(1, 8, dtype=F64), torch.zeros(4096, 8, dtype=F64)
    queue[:, 3] = 1
    assert info_nce_loss(q, q, queue, 0.07).item() == pytest.approx(0.0025562, abs=1e-7)


@pytest.mark.parametrize(("temperature", "about"), [(0.07, 11.9), (0.2, 11.2)])
def test_info_nce_of_random_rows_is_about_the_logarithm_of_the_queue_length(temperature, about):
    query, key, queue = rows(256, 128), rows(256, 128, seed=1), rows(65536, 128, seed=2)
    loss = info_nce_loss(query.float(), key.float(), queue.float(), temperature).item()
    assert loss == pytest.approx(math.log(65536) + 1 / (2 * 128 * temperature**2), abs=0.15)
    assert loss == pytest.approx(about, abs=0.2)


def test_byol_lies_between_0_and_4_per_direction_for_any_lengths():
    p = rows(512, 256)
    assert byol_loss(p, 5 * p).item() == pytest.approx(0, abs=1e-12)
    assert byol_loss(p, -0.1 * p).item() == pytest.approx(4, abs=1e-12)
    both = byol_loss(p, rows(512, 256, seed=1)) + byol_loss(rows(512, 256, seed=2), rows(512, 256, seed=3))
    assert both.item() == pytest.approx(4, abs=0.05)


def test_byol_has_a_finite_gradient_for_a_zero_vector():
    p = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    loss = byol_loss(p, rows(2, 4))
    loss.backward()
    assert loss.item() == 2 and p.grad is not None and torch.isfinite(p.grad).all()


def test_simsiam_lies_between_minus_1_and_1_and_stops_the_gradient():
    p1, p2, z1, z2 = (rows(5, 4, seed=seed, grad=True) for seed in range(4))
    simsiam_loss(p1, p2, z1, z2).backward()
    assert z1.grad is None and z2.grad is None and p1.grad is not None
    z = rows(5, 4, grad=True)
    byol_loss(p1, z).backward()
    assert z.grad is None
    assert simsiam_loss(p1, p2, 2 * p2, 3 * p1).item() == pytest.approx(-1, abs=1e-12)
    assert simsiam_loss(p1, p2, -p2, -p1).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nt_xent_loss(rows(3, 4), rows(2, 4), 0.1),
        lambda: nt_xent_loss(rows(3), rows(3), 0.1),
        lambda: info_nce_loss(rows(3, 4), rows(3, 4), rows(4, 5), 0.1),
        lambda: info_nce_loss(rows(3, 4), rows(2, 4), rows(5, 4), 0.1),
        lambda: byol_loss(rows(3, 256), rows(3, 128)),
        lambda: simsiam_loss(rows(3, 4), rows(3, 4), rows(3, 5), rows(3, 4)),
    ],
)
def test_shapes_that_do_not_fit_raise_an_error(call):
    with pytest.raises(ValueError, match=r"got \(|differ in shape"):
        call()


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (0, 5)])
def test_the_mean_over_ranks_of_batch_means_is_the_mean_of_the_joined_batch(sizes):
    values = torch.arange(sum(sizes), dtype=torch.float64) ** 2

    def on_a_rank():
        with process_group(60):
            return batch_mean(values.split(list(sizes))[distributed.rank()]).item()

    assert sum(end.value for end in children.run_ranks(2, on_a_rank)) / 2 == pytest.approx(
        values.mean().item(), abs=1e-12
    )
    assert batch_mean(values) == values.mean()
