"""DINO's cross-entropy between views (arXiv 2104.14294, equations 1 to 4), lean enough for 65,536
prototypes.

    P_t = softmax((z_t − c) / τ_t),   P_s = softmax(z_s / τ_s)
    L   = 1/(g·v − g) · Σ_t Σ_{s ≠ t} mean_b H(sg P_t, P_s)

with t over the g global crops and s over all v crops. `dino.dense_loss` is this double loop. It
keeps about eight tensors of the size of the student's logits. Here a crop s first sums its targets,
Q_s = Σ_{t ≠ s} P_t, so that each crop needs one softmax. With n_s the number of its targets,

    Σ_{t ≠ s} H(P_t, P_s) = n_s · logsumexp(z_s/τ_s) − ⟨Q_s, z_s/τ_s⟩

because H(P, softmax x) = logsumexp(x) − ⟨P, x⟩ and each P_t sums to 1. The gradient with respect to
z_s is (n_s · P_s − Q_s) / τ_s. It has to be stored anyway, so the forward pass makes it, a few rows
at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_core.device import wide

CACHED = 1 << 18
"""Logits that a CPU handles at a time: a megabyte stays in its cache."""


class Targets(NamedTuple):
    """What the teacher says about its crops."""

    probs: Tensor
    """(g, b, k), at least float32, no gradient"""
    entropy: Tensor
    """scalar: mean over crops and samples, in nats, between 0 and ln k"""


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, student_temp: float, teacher_temp: float) -> Tensor:
    """Mean cross-entropy, in nats, over the g·v − g pairs of a teacher's crop and another crop of
    the student.

    student (v, b, k) and teacher (g, b, k) are logits in any float type. Crop t of the teacher is
    crop t of the student, so v ≥ g. `center` (k,) or (1, k) is subtracted from the teacher's
    logits. The teacher gets no gradient. Computed in float32 (float64 for float64). Raises
    ValueError if the shapes do not fit each other.
    """
    return cross_view_entropy(student, center_and_sharpen(teacher, center, teacher_temp).probs, student_temp)


@torch.no_grad()
def center_and_sharpen(logits: Tensor, center: Tensor, temp: float) -> Targets:
    """softmax((logits − center) / temp) of the teacher's logits (g, b, k), and its mean entropy."""
    x = (wide(logits) - wide(center)) / temp  # g b k
    probs = x.softmax(-1)
    entropy = _logsumexp(x, probs) - (x * probs).sum(-1)  # g b
    return Targets(probs, entropy.mean())


def cross_view_entropy(student: Tensor, targets: Tensor, temp: float, *, block: int = 0) -> Tensor:
    """Mean over pairs (t, s ≠ t) and samples of the cross-entropy of softmax(student[s] / temp)
    against targets[t].

    student (v, b, k) are logits, targets (g, b, k) probabilities, v ≥ g, with at least one pair.
    Only the student gets a gradient, which cannot be differentiated again. `block` is the number
    of logits that are handled at a time, 0 for what suits the device. Raises ValueError if the
    shapes do not fit each other.
    """
    g, v = len(targets), len(student)
    if student.shape[1:] != targets.shape[1:] or not 1 <= g <= v or v == 1:
        reason = "student (v, b, k) and teacher (g, b, k) need the same b and k and v >= g, v > 1: got"
        raise ValueError(f"{reason} {tuple(student.shape)} and {tuple(targets.shape)}")
    # A GPU has no cache to fit into: it takes all samples of a crop at once.
    suits = CACHED if student.device.type == "cpu" else targets.numel()
    return _loss_and_gradient(student, targets, temp, block or suits)[0]


# This is an operator of its own, so that torch.compile takes it whole and does not unroll the loop.
@torch.library.custom_op("ssl_dino::cross_view_entropy", mutates_args=())
def _loss_and_gradient(student: Tensor, targets: Tensor, temp: float, block: int) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient with respect to `student`)."""
    (v, b, k), g = student.shape, len(targets)
    pairs = b * (g * v - g)
    loss, gradient = targets.new_zeros(()), torch.empty_like(student)
    together = targets.sum(0)  # b k
    rows = max(1, block // k)
    for s in range(v):
        # A local crop has all g targets. A global crop has all but its own.
        count = g - 1 if s < g else g
        for i in range(0, b, rows):
            part = slice(i, i + rows)
            q = together[part] - targets[s, part] if s < g else together[part]  # rows k
            x = wide(student[s, part]) / temp  # rows k
            p = x.softmax(-1)
            loss += count * _logsumexp(x, p).sum() - (x * q).sum()

            # p becomes the gradient of the mean over pairs, in place.
            gradient[s, part] = p.mul_(count).sub_(q).mul_(1 / (temp * pairs))
    return loss / pairs, gradient


@_loss_and_gradient.register_fake
def _(student: Tensor, targets: Tensor, temp: float, block: int) -> tuple[Tensor, Tensor]:
    return targets.new_empty(()), torch.empty_like(student)


def _keep_gradient(ctx, inputs: tuple[Tensor, Tensor, float, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx, scale: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    if scale is None:
        return None, None, None, None
    (gradient,) = ctx.saved_tensors
    return gradient * scale.to(gradient.dtype), None, None, None


_loss_and_gradient.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def _logsumexp(x: Tensor, probs: Tensor) -> Tensor:
    """log Σ exp x over the last axis, from the softmax: max x − log max p needs no exponential."""
    return x.amax(-1) - probs.amax(-1).log()
