"""DINO's cross-entropy between views (arXiv 2104.14294, equations 1 to 4), lean enough for 65,536 prototypes.

    P_t = softmax((z_t − c) / τ_t),   P_s = softmax(z_s / τ_s)
    L   = 1/(g·v − g) · Σ_t Σ_{s ≠ t} mean_b H(sg P_t, P_s)          t over g global crops, s over all v crops

Written out per pair this keeps about eight tensors of the size of the student's logits. Here the targets of a crop s are
summed first, Q_s = Σ_{t ≠ s} P_t, so that each crop is one softmax: with n_s the number of its targets

    Σ_t H(P_t, P_s) = n_s · logsumexp(z_s/τ_s) − ⟨Q_s, z_s/τ_s⟩,   gradient (n_s · P_s − Q_s) / τ_s

and the gradient, which has to be stored anyway, is made in the forward pass, a few rows at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CACHED = 1 << 18
"""numbers that a CPU handles at a time: a megabyte stays in its cache"""


class Targets(NamedTuple):
    """What the teacher says about its crops."""

    probs: Tensor
    """(g, b, k) float32, no gradient"""
    entropy: Tensor
    """scalar: mean over crops and samples, in nats, between 0 and ln k"""


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, student_temp: float, teacher_temp: float) -> Tensor:
    """Mean cross-entropy, in nats, over the g·v − g pairs of a teacher's crop and another crop of the student.

    student (v, b, k) and teacher (g, b, k) are logits in any float type; crop t of the teacher is crop t of the
    student, so v ≥ g. `center` (k,) or (1, k) is subtracted from the teacher's. The teacher gets no gradient. Computed
    in float32 (float64 for float64). Raises ValueError for shapes that do not belong together.
    """
    return cross_view_entropy(student, center_and_sharpen(teacher, center, teacher_temp).probs, student_temp)


@torch.no_grad()
def center_and_sharpen(logits: Tensor, center: Tensor, temp: float) -> Targets:
    """softmax((logits − center) / temp) of the teacher's logits (g, b, k), and its mean entropy."""
    x = (_wide(logits) - _wide(center)) / temp
    probs = x.softmax(-1)
    entropy = _logsumexp(x, probs) - (x * probs).sum(-1)
    return Targets(probs, entropy.mean())


def cross_view_entropy(student: Tensor, targets: Tensor, temp: float) -> Tensor:
    """Mean over pairs (t, s ≠ t) and samples of the cross-entropy of softmax(student[s] / temp) against targets[t].

    student (v, b, k) logits, targets (g, b, k) probabilities, v ≥ g, and at least one pair. The gradient is that of the
    student alone and cannot be differentiated again.
    """
    g, v = len(targets), len(student)
    if student.shape[1:] != targets.shape[1:] or not 1 <= g <= v or v == 1:
        raise ValueError(
            f"student (v, b, k) and teacher (g, b, k) need the same b and k and v >= g, v > 1: got "
            f"{tuple(student.shape)} and {tuple(targets.shape)}"
        )
    return _loss_and_gradient(student, targets, temp)[0]


# An operator of its own, so that torch.compile takes it whole and does not unroll the loop.
@torch.library.custom_op("ssl_dino::cross_view_entropy", mutates_args=())
def _loss_and_gradient(student: Tensor, targets: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient with respect to `student`)."""
    (v, b, k), g = student.shape, len(targets)
    pairs = b * (g * v - g)
    loss, gradient = targets.new_zeros(()), torch.empty_like(student)
    together = targets.sum(0)  # b k
    rows = max(1, CACHED // k) if student.device.type == "cpu" else b
    for s in range(v):
        count = g - 1 if s < g else g
        for i in range(0, b, rows):
            part = slice(i, i + rows)
            q = together[part] - targets[s, part] if s < g else together[part]
            x = _wide(student[s, part]) / temp
            p = x.softmax(-1)
            loss += count * _logsumexp(x, p).sum() - (x * q).sum()
            gradient[s, part] = p.mul_(count).sub_(q).mul_(1 / (temp * pairs))
    return loss / pairs, gradient


@_loss_and_gradient.register_fake
def _(student: Tensor, targets: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    return targets.new_empty(()), torch.empty_like(student)


def _keep_gradient(ctx, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx, scale: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None]:
    if scale is None:
        return None, None, None
    (gradient,) = ctx.saved_tensors
    return gradient * scale.to(gradient.dtype), None, None


_loss_and_gradient.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def _logsumexp(x: Tensor, probs: Tensor) -> Tensor:
    """log Σ exp x over the last axis where the softmax is known: without another exponential per number."""
    return x.amax(-1) - probs.amax(-1).log()


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
