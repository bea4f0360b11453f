"""DINO's loss against sums written out, its gradient, its memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_dino import dino_loss
from ssl_dino.dino import dense_loss
from ssl_dino.loss import center_and_sharpen, cross_view_entropy


def logits(v: int, b: int, k: int, seed: int, dtype=torch.float64) -> Tensor:
    return torch.randn(v, b, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    e = [math.exp(value - max(x)) for value in x]
    return np.array([value / sum(e) for value in e])


def by_hand(student: Tensor, teacher: Tensor, center: Tensor, student_temp: float, teacher_temp: float) -> float:
    """The paper's double loop over crops, samples and prototypes, in plain Python."""
    terms = []
    for t in range(len(teacher)):
        for s in range(len(student)):
            if s == t:
                continue
            for i in range(student.shape[1]):
                target = softmax((teacher[t, i] - center.reshape(-1)).numpy() / teacher_temp)
                predicted = softmax(student[s, i].detach().numpy() / student_temp)
                terms.append(-sum(p * math.log(q) for p, q in zip(target, predicted, strict=True)))
    assert len(terms) == (len(teacher) * len(student) - len(teacher)) * student.shape[1]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("v", "g"), [(2, 2), (10, 2), (2, 1), (5, 3), (3, 3)])
def test_loss_is_the_double_loop_over_pairs(v, g):
    student, teacher, center = logits(v, 3, 7, 0), logits(g, 3, 7, 1), logits(1, 1, 7, 2)[0] / 3
    expected = by_hand(student, teacher, center, 0.3, 0.2)
    assert dino_loss(student, teacher, center, 0.3, 0.2).item() == pytest.approx(expected, rel=1e-12)
    assert dino_loss(student, teacher, center[0], 0.3, 0.2).item() == pytest.approx(expected, rel=1e-12)
    assert dense_loss(student, teacher, center, 0.3, 0.2).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("v", "g"), [(10, 2), (4, 3)])
@pytest.mark.parametrize("block", [1, 20, 1 << 18, 0], ids=["one row", "some rows", "all rows", "default"])
def test_gradient_is_that_of_the_double_loop_however_the_rows_are_cut(v, g, block):
    teacher, center = logits(g, 5, 11, 1), logits(1, 1, 11, 2)[0]
    targets = center_and_sharpen(teacher, center, 0.04).probs
    fast, dense = (logits(v, 5, 11, 0).requires_grad_() for _ in range(2))
    (3 * cross_view_entropy(fast, targets, 0.1, block=block)).backward()
    (3 * dense_loss(dense, teacher, center, 0.1, 0.04)).backward()
    assert torch.allclose(fast.grad, dense.grad, rtol=1e-10, atol=1e-12)
    student = logits(v, 2, 3, 0).requires_grad_()
    targets = center_and_sharpen(logits(g, 2, 3, 1), torch.zeros(3, dtype=torch.float64), 0.5).probs
    assert torch.autograd.gradcheck(lambda x: cross_view_entropy(x, targets, 0.3, block=block), student)


def test_float32_and_bfloat16_logits_agree_with_float64():
    student, teacher, center = logits(10, 4, 4096, 0), logits(2, 4, 4096, 1), logits(1, 1, 4096, 2)[0]
    exact = dense_loss(student, teacher, center, 0.1, 0.04).item()
    single = [x.float() for x in (student, teacher, center)]
    assert dino_loss(*single, 0.1, 0.04).item() == pytest.approx(exact, rel=1e-5)
    half = dino_loss(student.bfloat16().requires_grad_(), teacher.bfloat16(), center.float(), 0.1, 0.04)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact, rel=2e-3)


def test_logits_far_from_zero_do_not_overflow():
    student, teacher = 1e4 * logits(3, 2, 5, 0, torch.float32), 1e4 * logits(2, 2, 5, 1, torch.float32)
    student.requires_grad_()
    loss = dino_loss(student, teacher, torch.zeros(5), 0.1, 0.04)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_a_uniform_student_has_the_loss_ln_k_and_the_teacher_no_gradient():
    teacher = logits(2, 4, 33, 1).requires_grad_()
    student = torch.zeros(6, 4, 33, dtype=torch.float64, requires_grad=True)
    loss = dino_loss(student, teacher, torch.zeros(33, dtype=torch.float64), 0.1, 0.04)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(33), rel=1e-12)
    assert teacher.grad is None and student.grad is not None


def test_entropy_is_that_of_the_targets():
    targets = center_and_sharpen(logits(2, 3, 9, 0), logits(1, 1, 9, 1)[0], 0.4)
    expected = torch.special.entr(targets.probs).sum(-1).mean()
    assert targets.entropy.item() == pytest.approx(expected.item(), rel=1e-12)
    sharp = center_and_sharpen(logits(2, 3, 9, 0), torch.zeros(9), 1e-4).entropy
    assert sharp.item() == pytest.approx(0, abs=1e-9)
    assert center_and_sharpen(torch.zeros(1, 1, 9), torch.zeros(9), 0.04).entropy.item() == pytest.approx(math.log(9))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 2, 5), (2, 2, 6)), ((4, 2, 5), (2, 3, 5)), ((1, 2, 5), (2, 2, 5)), ((1, 2, 5), (1, 2, 5))],
)
def test_shapes_that_do_not_fit_each_other_are_refused(student, teacher):
    with pytest.raises(ValueError, match=r"need the same b and k and v >= g, v > 1"):
        cross_view_entropy(torch.zeros(student), torch.zeros(teacher), 0.1)


def test_backward_keeps_one_tensor_of_the_size_of_the_students_logits():
    kept = []
    student, teacher = logits(10, 4, 512, 0, torch.float32).requires_grad_(), logits(2, 4, 512, 1, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        dino_loss(student, teacher, torch.zeros(512), 0.1, 0.04)
    assert sum(kept) == student.numel()
