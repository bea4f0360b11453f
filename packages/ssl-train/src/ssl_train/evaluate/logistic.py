"""Multinomial logistic regression by L-BFGS, along a path of regularisation strengths.

The problem is scikit-learn's: minimise C · Σᵢ −log softmax(xᵢW + b)[yᵢ] + ½‖W‖², the bias
unpenalised. Divided by C · n, its Hessian is about h · XᵀX/n + I/(C·n), where h = mean p(1 − p) is
the softmax's curvature (Böhning, 1992, bounds it by such a matrix). Along the principal axes of X
that matrix is diagonal for every C. So one decomposition serves the whole path, and L-BFGS, which
starts from the inverse of the diagonal, takes a fraction of the iterations.

L-BFGS is Nocedal & Wright's algorithm 7.5 with halved steps. The problem is convex, so every step
has positive curvature and the strong Wolfe conditions are not needed. Each C starts with the pairs
of the C before it: only the penalty's share of their curvature changes, by a known amount.
`torch.optim.LBFGS` compares step, loss and curvature with absolute numbers, and stalls where these
are small (gradients of 1e-6).
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

Pairs = deque[tuple[Tensor, Tensor, Tensor]]  # change of the point, of the gradient, 1 / their product


def logistic_path(
    x: Tensor, labels: Tensor, classes: int, strengths: Iterable[float], *, tolerance: float = 1e-9
) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight (d, c) and bias (c,) for each C of `strengths`, each fit starting from the one before.

    x: (n, d) float32 or float64, all arithmetic runs in its dtype; labels: (n,) int64 in
    [0, classes). A fit ends when what is left to gain is estimated below `tolerance` of the
    objective, or below rounding. Deterministic. Warns when 1,000 iterations are not enough.
    """
    mean = x.detach().mean(0)
    x = x.detach() - mean
    axes = principal_axes(x)  # d k
    for weight, bias in path_along_axes(x @ axes, labels, classes, strengths, tolerance=tolerance):
        weight = axes @ weight
        yield weight, bias - mean @ weight


def principal_axes(x: Tensor) -> Tensor:
    """Orthonormal (d, min(n, d)): the principal axes of x (n, d), whose columns have mean 0.

    The weights of a fit to these samples, or to some of them, are a combination of the axes.
    """
    if x.shape[1] <= len(x):
        return torch.linalg.eigh(x.T @ x).eigenvectors
    basis, corner = torch.linalg.qr(x.T)  # d n, n n
    return basis @ torch.linalg.eigh(corner @ corner.T).eigenvectors


def path_along_axes(
    x: Tensor, labels: Tensor, classes: int, strengths: Iterable[float], *, tolerance: float = 1e-9
) -> Iterator[tuple[Tensor, Tensor]]:
    """`logistic_path` of x (n, k) along the principal axes of these samples, or of more like them.

    Along other axes the result is the same, and takes more iterations.
    """
    mean = x.mean(0)
    # The bias is the weight of a column of ones. It takes up the mean: the same problem, better
    # conditioned.
    x = torch.cat([x - mean, torch.ones_like(x[:, :1])], dim=1)  # n k+1
    point = x.new_zeros(x.shape[1], classes)
    pairs: Pairs = deque(maxlen=MEMORY)
    before = torch.zeros_like(point[:, :1])
    squares = x.square().mean(0)[:, None]  # k+1 1: the diagonal of the Gram matrix, whose rest is about 0
    for c in strengths:
        penalty = torch.full_like(before, 1 / (c * len(x)))  # k+1 1
        penalty[-1] = 0
        shifted = [(change, bend + (penalty - before) * change) for change, bend, _ in pairs]
        pairs.clear()
        for change, bend in shifted:
            _remember(pairs, change, bend)
        point, before = _fit(x, labels, squares, point, penalty, pairs, tolerance), penalty
        yield point[:-1], point[-1] - mean @ point[:-1]


def _fit(
    x: Tensor, labels: Tensor, squares: Tensor, point: Tensor, penalty: Tensor, pairs: Pairs, tolerance: float
) -> Tensor:
    """The minimum (k, c) of mean cross-entropy + ½ Σ penalty · point², searched from `point` on."""
    p, rounding = F.softmax(x @ point, dim=1), torch.finfo(x.dtype).eps
    # The ridge keeps rounding errors small in directions that have almost no variance.
    ridge = 4 * rounding * squares.sum()
    hessian = ((p * (1 - p)).mean() + rounding) * (squares + ridge) + penalty  # k 1, its diagonal
    rows = torch.arange(len(x), device=x.device)

    def objective(point: Tensor) -> tuple[float, Tensor]:
        margin = x @ point
        margin -= margin[rows, labels][:, None]
        margin[rows, labels] = -torch.inf
        # log softmax = -softplus(log sum exp of the others' margins), and the gradient is made of
        # the others alone: float32 keeps its relative precision where nearly all samples are right.
        wrong = torch.logsumexp(margin, dim=1)
        loss = F.softplus(wrong).mean() + 0.5 * (penalty * point.square()).sum()
        share = torch.sigmoid(wrong) / len(x)
        residual = margin.sub_(wrong[:, None]).exp_().mul_(share[:, None])  # n c
        residual[rows, labels] = -share
        return loss.item(), x.T @ residual + penalty * point

    return _minimise(objective, point, hessian, pairs, tolerance)


def _minimise(
    objective: Callable[[Tensor], tuple[float, Tensor]], point: Tensor, hessian: Tensor, pairs: Pairs, tolerance: float
) -> Tensor:
    """The minimum of a convex and positive `objective`, which gives value and gradient.

    `hessian` is about its diagonal, `pairs` are what is known of it, and grow.
    """
    rounding = torch.finfo(point.dtype).eps
    value, gradient = objective(point)
    for _ in range(MAX_ITERATIONS):
        step = _direction(gradient, hessian, pairs)
        slope = _dot(step, gradient).item()  # minus twice what is left to gain, by the model
        noise = 4 * rounding * value
        if -slope <= 2 * max(tolerance * value, noise):
            return point
        size = 1.0
        new_value, new_gradient = objective(point + step)
        while new_value > value + 1e-4 * size * slope + noise:
            size /= 2
            new_value, new_gradient = objective(point + size * step)
        _remember(pairs, size * step, new_gradient - gradient)
        point, value, gradient = point + size * step, new_value, new_gradient
    warnings.warn(f"logistic regression has not converged in {MAX_ITERATIONS} iterations", stacklevel=5)
    return point


def _remember(pairs: Pairs, change: Tensor, bend: Tensor) -> None:
    product = _dot(change, bend)
    if product > 0:  # not so only by rounding
        pairs.append((change, bend, 1 / product))


def _direction(gradient: Tensor, hessian: Tensor, pairs: Pairs) -> Tensor:
    """Minus the inverse Hessian, as far as its diagonal and `pairs` know it, times the gradient."""
    step, shares = -gradient, []
    for change, bend, inverse in reversed(pairs):
        shares.append(inverse * _dot(change, step))
        step = step - shares[-1] * bend
    step = step / hessian
    if pairs:
        _, bend, inverse = pairs[-1]
        step = step / (inverse * _dot(bend, bend / hessian))
    for (change, bend, inverse), share in zip(pairs, reversed(shares), strict=True):
        step = step + (share - inverse * _dot(bend, step)) * change
    return step


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())
