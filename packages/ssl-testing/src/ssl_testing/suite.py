"""What every part of the conformance suite stands on: the package's recipe, its tiny config, and a few pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core.device import seed_step
from ssl_core.method import Recipe, load
from ssl_testing.tiny import write_pictures
from ssl_testing.trial import Trial
from ssl_train.data.loader import Batches, Plan, collate


class Suite:
    """What a package sets. The suite sets batch size, epochs, learning rate and precision itself."""

    recipe: Recipe
    config: Any
    """the smallest config that has every part of the method"""
    source: str = "ssl_testing.tiny:open_pictures"
    """opens 64 samples; for a method that reads something else than pictures, its own"""
    noiseless: Mapping[str, Any] = {}
    """fields that switch off the model's own noise (dropout, drop path) where two ways of computing are compared"""

    exports: tuple[str, ...] | None = None
    """the layouts that `config` can be exported to; all of the package by default"""

    def write_data(self, folder: Path) -> Path:
        """At least 64 labelled samples on disk, as a user has them; returns what --data is given."""
        return write_pictures(folder, self.config)

    def settings(self, **changes: Any) -> Any:
        """The tiny config for 20 steps of 8 of the 64 samples, in fp32."""
        fixed = {
            "batch_size": 8, "epochs": 2.5, "warmup_epochs": 0.25, "base_lr": 0.032, "precision": "fp32", "seed": 0,
        }  # fmt: skip
        return dataclasses.replace(self.config, **{**fixed, **changes})

    def trial(self, **changes: Any) -> Trial:
        """A training that may be repeated and disturbed."""
        return Trial(dataclasses.replace(self.recipe, source=self.source, settle=None), self.settings(**changes))

    def method(self, **changes: Any) -> Any:
        """The method as a run of this seed begins with it."""
        config = self.settings(**changes)
        seed_step(config.seed)
        return load(self.recipe.method)(config)

    def samples(self) -> Any:
        return load(self.source)(None, config=self.settings(), split="train")

    def first_step(self, config: Any, parts: int = 1) -> list[dict[str, Any]]:
        """The micro-batches of step 0 of this process."""
        source = self.samples()
        plan = Plan(len(source), config.batch_size, config.epochs, config.seed)
        return next(iter(Batches(source, load(self.recipe.views)(config), plan, parts=parts)))

    def inputs(self, number: int = 6) -> Tensor:
        """What `encode` is given in evaluations: (b, …)."""
        view, source = load(self.recipe.eval_view)(self.settings()), self.samples()
        return collate([view(source.load(i), None) for i in range(number)])["views"][0]

    def encode(self, method: Any, inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return method.eval().encode(inputs)
