"""Signs of collapse that need no labels: how far features spread, and over how many directions.

Read them before an output batch norm without affine weights: behind one, the standard deviation is
1 whatever happens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_train.evaluate.accuracy import check_finite

SAMPLES = 2048


def feature_std(x: Tensor) -> float:
    """Mean over dimensions of the standard deviation of L2-normalised x (n, d), times sqrt(d).

    About 1 when features point everywhere, 0 when all point the same way (SimSiam, arXiv
    2011.10566, section 4.1). ValueError with fewer than two rows or non-finite ones.
    """
    _check(x)
    z = F.normalize(x.detach().float(), dim=1)
    return (z.std(0).mean() * z.shape[1] ** 0.5).item()


def rankme(x: Tensor) -> float:
    """exp of the entropy of the singular values of x (n, d), as shares of their sum: from 1 to
    min(n, d).

    Garrido et al. (arXiv 2210.02885, equation 1); features are not centred. Past 2,048 rows, as
    many evenly spaced ones are read. Features that are all zero have rank 0. ValueError with fewer
    than two rows or non-finite ones.
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
