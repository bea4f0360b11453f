"""Multinomial logistic regression by L-BFGS, along a path of regularisation strengths.

The problem is scikit-learn's: minimise C · Σᵢ −log softmax(xᵢW + b)[yᵢ] + ½‖W‖², the bias
unpenalised. Divided by C · n, its Hessian is about h · XᵀX/n + I/(C·n), where h = mean p(1 − p) is
the softmax's curvature (Böhning, 1992, bounds it by such a matrix). With LLᵀ that matrix, the
search runs in U = LᵀW: there the problem is nearly round, and takes a fraction of the iterations.

L-BFGS is Nocedal & Wright's algorithm 7.5 with halved steps. The problem is convex, so every step
has positive curvature and the strong Wolfe conditions are not needed. `torch.optim.LBFGS` compares
step, loss and curvature with absolute numbers, and stalls where these are small (gradients of
1e-6).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

MEMORY = 20  # pairs of L-BFGS
MAX_ITERATIONS = 1000

Pair = tuple[Tensor, Tensor, Tensor]  # change of the point, of the gradient, 1 / their product


def logistic_path(
    x: Tensor,
    labels: Tensor,
    classes: int,
    strengths: Iterable[float],
    *,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-9,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight (d, c) and bias (c,) for each C of `strengths`. Each fit starts from the last one.

    x: (n, d) float32 or float64, all arithmetic runs in its dtype; labels: (n,) int64 in
    [0, classes). `start` is where the first fit begins, else zeros. A fit ends when what is left to
    gain is estimated below `tolerance` of the objective, or below rounding. Deterministic. Warns
    when 1,000 iterations are not enough.
    """
    mean = x.detach().mean(0)
    x = x.detach() - mean  # the bias absorbs the mean: the same problem, better conditioned
    basis = None
    if x.shape[1] > len(x):
        # W lies in the span of the samples: n coordinates say as much as d.
        basis = torch.linalg.qr(x.T).Q  # d n
        x = x @ basis
    weight, bias = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    if start is not None:
        outer, bias = (part.to(x) for part in start)
        weight, bias = (outer if basis is None else basis.T @ outer), bias + mean @ outer
    gram = x.T @ x / len(x)
    for c in strengths:
        weight, bias = _fit(x, labels, gram, weight, bias, 1 / (c * len(x)), tolerance)
        outer = weight if basis is None else basis @ weight
        yield outer, bias - mean @ outer


def _fit(
    x: Tensor, labels: Tensor, gram: Tensor, weight: Tensor, bias: Tensor, penalty: float, tolerance: float
) -> tuple[Tensor, Tensor]:
    """The minimum of mean cross-entropy + ½ · penalty · ‖weight‖², from a start `weight, bias`."""
    p = F.softmax(x @ weight + bias, dim=1)
    curvature = (p * (1 - p)).mean().item()
    lower = _root(curvature * gram, penalty)
    scale = (curvature + torch.finfo(x.dtype).eps) ** 0.5  # the bias has no penalty
    rows = torch.arange(len(x), device=x.device)

    def unpack(theta: Tensor) -> tuple[Tensor, Tensor]:
        u = theta[: weight.numel()].reshape(weight.shape)
        w = torch.linalg.solve_triangular(lower.T, u, upper=True)
        return w, theta[weight.numel() :] / scale

    def objective(theta: Tensor) -> tuple[float, Tensor]:
        w, b = unpack(theta)
        margin = x @ w + b
        margin -= margin[rows, labels][:, None]
        margin[rows, labels] = -torch.inf
        # log softmax = -softplus(log sum exp of the others' margins), and the gradient is made of
        # the others alone: float32 keeps its relative precision where nearly all samples are right.
        wrong = torch.logsumexp(margin, dim=1)
        loss = F.softplus(wrong).mean() + 0.5 * penalty * w.square().sum()
        share = torch.sigmoid(wrong) / len(x)
        residual = margin.sub_(wrong[:, None]).exp_().mul_(share[:, None])  # n c
        residual[rows, labels] = -share
        slope = torch.linalg.solve_triangular(lower, x.T @ residual + penalty * w, upper=False)
        return loss.item(), torch.cat([slope.flatten(), residual.sum(0) / scale])

    return unpack(_minimise(objective, torch.cat([(lower.T @ weight).flatten(), bias * scale]), tolerance))


def _root(matrix: Tensor, penalty: float) -> Tensor:
    """Lower L with LLᵀ = matrix + (penalty + a ridge of the size of rounding errors) · I."""
    ridge = penalty + 4 * torch.finfo(matrix.dtype).eps * matrix.trace().item()
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    return torch.linalg.cholesky(matrix.double() + ridge * eye).to(matrix.dtype)


def _minimise(objective: Callable[[Tensor], tuple[float, Tensor]], point: Tensor, tolerance: float) -> Tensor:
    """The minimum of `objective`, which is convex and positive and returns (value, gradient)."""
    rounding = torch.finfo(point.dtype).eps
    pairs: deque[Pair] = deque(maxlen=MEMORY)
    value, gradient = objective(point)
    for _ in range(MAX_ITERATIONS):
        step = _direction(gradient, pairs)
        slope = torch.dot(step, gradient).item()  # minus twice what is left to gain, by the model
        noise = 4 * rounding * value
        if -slope <= 2 * max(tolerance * value, noise):
            return point
        size = 1.0
        new_value, new_gradient = objective(point + step)
        while new_value > value + 1e-4 * size * slope + noise:
            size /= 2
            new_value, new_gradient = objective(point + size * step)
        change, bend = size * step, new_gradient - gradient
        if torch.dot(change, bend) > 0:  # not so only by rounding
            pairs.append((change, bend, 1 / torch.dot(change, bend)))
        point, value, gradient = point + change, new_value, new_gradient
    warnings.warn(f"logistic regression has not converged in {MAX_ITERATIONS} iterations", stacklevel=4)
    return point


def _direction(gradient: Tensor, pairs: deque[Pair]) -> Tensor:
    """Minus the inverse Hessian, estimated from `pairs`, times the gradient."""
    step, shares = -gradient, []
    for change, bend, inverse in reversed(pairs):
        shares.append(inverse * torch.dot(change, step))
        step = step - shares[-1] * bend
    if pairs:
        _, bend, inverse = pairs[-1]
        step = step / (inverse * torch.dot(bend, bend))
    for (change, bend, inverse), share in zip(pairs, reversed(shares), strict=True):
        step = step + (share - inverse * torch.dot(bend, step)) * change
    return step
