"""The base of the conformance suite: what a package sets, and what the tests build from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core.device import seed_step
from ssl_core.method import Recipe, load
from ssl_testing.strangers import Stranger, write_strangers
from ssl_testing.tiny import write_pictures
from ssl_testing.trial import Trial
from ssl_train.data.loader import Batches, Plan, collate


class Suite:
    """A package sets these fields; batch size, epochs, learning rate and precision are fixed."""

    recipe: Recipe
    config: Any
    """the smallest config that uses every part of the method"""
    source: str = "ssl_testing.tiny:open_pictures"
    """opens 64 samples, like `Recipe.source`; set it if the method does not read images"""
    noiseless: Mapping[str, Any] = {}
    """settings that switch off the model's own noise, such as dropout, to compare computations"""
    exports: tuple[str, ...] | None = None
    """layouts that `config` can be exported to; all of the package's by default"""
    has_program: bool = True
    """whether `export --to torch` can trace the method"""
    folders: tuple[str, ...] = ("12 large 16-bit", "100 small RGBA")
    """the folders of `ssl_testing.strangers` on which it trains without settings"""

    def write_data(self, folder: Path) -> Path:
        """Write at least 64 labelled samples to disk; returns the value of --data."""
        return write_pictures(folder, self.config)

    def write_strangers(self, folder: Path, stranger: Stranger) -> None:
        """Write a folder of `STRANGERS`."""
        write_strangers(folder, stranger)

    def settings(self, **changes: Any) -> Any:
        """The tiny config for 20 steps in fp32, on batches of 8 of the 64 samples."""
        fixed = {"batch_size": 8, "epochs": 2.5, "warmup_epochs": 0.25, "base_lr": 0.032}
        return dataclasses.replace(self.config, **{**fixed, "precision": "fp32", "seed": 0, **changes})

    def trial(self, **changes: Any) -> Trial:
        """A training run that tests can repeat and disturb."""
        return Trial(dataclasses.replace(self.recipe, source=self.source, settle=None), self.settings(**changes))

    def method(self, **changes: Any) -> Any:
        """The method as a run with this seed starts it."""
        config = self.settings(**changes)
        seed_step(config.seed)
        return load(self.recipe.method)(config)

    def samples(self) -> Any:
        """The 64 samples of `source`."""
        return load(self.source)(None, config=self.settings(), split="train")

    def first_step(self, config: Any, parts: int = 1) -> list[dict[str, Any]]:
        """This process's micro-batches of step 0."""
        source = self.samples()
        plan = Plan(len(source), config.batch_size, config.epochs, config.seed)
        return next(iter(Batches(source, load(self.recipe.views)(config), plan, parts=parts)))

    def inputs(self, number: int = 6) -> Tensor:
        """What evaluations pass to `encode`: (b, …)."""
        view, source = load(self.recipe.eval_view)(self.settings()), self.samples()
        return collate([view(source.load(i), None) for i in range(number)])["views"][0]

    def encode(self, method: Any, inputs: Tensor) -> Tensor:
        """Features (b, d) in eval mode."""
        with torch.inference_mode():
            return method.eval().encode(inputs)
