"""Signs of collapse that need no labels: how far features spread, and over how many directions.

Measure features before any last batch norm without affine weights. Behind such a norm the standard
deviation is always 1, collapsed or not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_train.evaluate.accuracy import check_finite

SAMPLES = 2048


def feature_std(x: Tensor) -> float:
    """Mean over dimensions of the standard deviation of L2-normalised x (n, d), times sqrt(d).

    About 1 if features point everywhere, 0 if all point the same way (SimSiam, arXiv 2011.10566,
    section 4.1). Raises ValueError for fewer than two rows or non-finite ones.
    """
    _check(x)
    z = F.normalize(x.detach().float(), dim=1)
    return (z.std(0).mean() * z.shape[1] ** 0.5).item()


def rankme(x: Tensor) -> float:
    """The effective rank of x (n, d): exp(-Σ p log p), where p are the singular values over their
    sum. It lies between 1 and min(n, d), and is 0 if all features are zero.

    Garrido et al. (arXiv 2210.02885, equation 1). Features are not centred. With more than 2,048
    rows, 2,048 evenly spaced ones are used. Raises ValueError for fewer than two rows or non-finite
    ones.
    """
    _check(x)
    if len(x) > SAMPLES:
        x = x[torch.linspace(0, len(x) - 1, SAMPLES, device=x.device).long()]
    x = x.detach().cpu().double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 0.0
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().item()


def _check(x: Tensor) -> None:
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be (n, d) with n >= 2, got {tuple(x.shape)}")
    check_finite(x)
