"""Measures of the features during training, so that a collapse shows while it happens."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_train.data.loader import collate
from ssl_train.data.readable import readable
from ssl_train.data.split import kinds_of
from ssl_train.errors import TrainingError
from ssl_train.evaluate.health import feature_std, rankme
from ssl_train.evaluate.knn import leave_one_out

EVERY = 50
BUDGET = 0.05


class Collapsed(TrainingError):
    """The features have collapsed, and the run was asked to stop in that case."""


class Probe:
    """Feature std, RankMe and, with labels, leave-one-out k-NN of `size` fixed samples of `source`.

    Due every 50 steps while all probes together take less than 5 % of the run's time.
    `method.encode` is asked in eval mode; the loop seeds every step, so looking changes nothing.
    """

    def __init__(self, source: Any, transform: Any, *, device: torch.device, size: int = 512) -> None:
        self.source, self.transform, self.device, self.size = source, transform, device, size
        self.batches: list[dict[str, Any]] = []
        self.labels: torch.Tensor | None = None
        self.first: dict[str, float] = {}
        self.spent, self.began = 0.0, time.perf_counter()

    def due(self, step: int) -> bool:
        return step % EVERY == 0 and self.spent <= BUDGET * (time.perf_counter() - self.began)

    def __call__(self, method: nn.Module) -> dict[str, float]:
        """{"health/feature_std", "health/rankme", "health/knn"} of the method as it is now.

        And "health/projection_std" of a method that can `project`: the variety of a random network
        stays in its features for long when the projections have already collapsed. Nothing of a
        single sample, which tells of no variety.
        """
        start = time.perf_counter()
        if not self.batches:
            self._load()
        if sum(len(batch["views"][0]) for batch in self.batches) < 2:
            return {}
        modes = [(part, part.training) for part in method.modules()]  # a frozen teacher's may differ
        method.eval()
        try:
            with torch.inference_mode():
                parts = [method.encode(b["views"][0].to(self.device)).float().cpu() for b in self.batches]  # type: ignore[operator]
                x = torch.cat(parts)  # b d
                scores = {"health/feature_std": feature_std(x), "health/rankme": rankme(x)}
                if hasattr(method, "project"):
                    z = method.project(x.to(self.device))  # type: ignore[operator]
                    scores["health/projection_std"] = feature_std(z.float().cpu())
        finally:
            for part, training in modes:
                part.training = training
        if self.labels is not None:
            scores["health/knn"] = leave_one_out(x, self.labels)
        self.first = self.first or scores
        self.spent += time.perf_counter() - start
        return scores

    def examine(self, method: Any, outputs: dict[str, float], progress: float) -> tuple[dict[str, float], str | None]:
        """(scores, the sign of collapse in them or in the method's own `outputs`, or None)."""
        scores = self(method)
        if not scores:
            return {}, None
        own = method.collapse({**outputs, **scores}, progress) if hasattr(method, "collapse") else None
        return scores, own or self.collapse(method, scores)

    def collapse(self, method: nn.Module, scores: dict[str, float]) -> str | None:
        """The sign of collapse in these scores, or None: both measures far below the first ones.

        Only a method that says `can_collapse` is judged: a loss on pixels or tokens has no constant
        solution, and its features may be narrow early on.
        """
        std, rank = scores["health/feature_std"], scores["health/rankme"]
        low = std < 0.3 * self.first["health/feature_std"] and rank < 0.5 * self.first["health/rankme"]
        if not low or not getattr(method, "can_collapse", False):
            return None
        return (
            f"the features are collapsing: std {std:.3f} (was {self.first['health/feature_std']:.3f}), "
            f"RankMe {rank:.1f} (was {self.first['health/rankme']:.1f})"
        )

    def _load(self) -> None:
        samples, labels = [], []
        known = None if self.source.labels is None else kinds_of(self.source.labels)
        for index, sample in readable(self.source, self.size):  # the training loader counts and names the others
            samples.append(self.transform(sample, np.random.default_rng(0)))
            labels.append(-1 if known is None else int(known[index]))
        self.batches = [collate(samples[i : i + 64]) for i in range(0, len(samples), 64)]
        if min(labels) >= 0 and len(set(labels)) > 1:
            self.labels = torch.tensor(labels)
