"""A short training run of a recipe in a child, with faults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_core.method import Recipe, load
from ssl_testing.children import Child, Ended, run_ranks
from ssl_testing.faults import Fault
from ssl_train.data.loader import Plan
from ssl_train.options import RunOptions
from ssl_train.run import train


@dataclass(frozen=True)
class Trial:
    """What to train. Call `train` again on the same folder, as a user repeats a command."""

    recipe: Recipe
    config: Any
    data: str | None = None

    @property
    def plan(self) -> Plan:
        """The order of the samples."""
        source = load(self.recipe.source)(self.data, config=self.config, split="train")
        return Plan(len(source), self.config.batch_size, self.config.epochs, self.config.seed)

    def replace(self, **changes: Any) -> Trial:
        """The same trial with other settings."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def train(self, out: Path, *faults: Fault, warns: bool = False, **options: Any) -> Ended:
        """Train into `out` in a child and wait. A warning ends the child unless `warns`.

        `options` are fields of RunOptions; by default every step writes a checkpoint.
        """
        return self.start(out, *faults, warns=warns, **options).end()

    def start(self, out: Path, *faults: Fault, warns: bool = False, **options: Any) -> Child:
        """Start a child that trains into `out`."""
        load(self.recipe.method)  # imported once here instead of in each child
        return Child(lambda: self._child(out, faults, options), warns=warns)

    def train_ranks(self, world: int, out: Path, *faults: Fault, warns: bool = False, **options: Any) -> list[Ended]:
        """Train in `world` processes; how each of them ended."""
        return run_ranks(world, lambda: self._child(out, faults, options), warns=warns)

    def here(self, out: Path, *faults: Fault, **options: Any) -> Any:
        """Train in this process; returns the trained method."""
        handles = [fault(load(self.recipe.method), self.plan.steps) for fault in faults]
        settings: dict[str, Any] = {"device": "cpu", "workers": 0, "checkpoint_minutes": 0.0, "log_every": 1}
        # The estimate of the memory takes longer than a few tiny steps; the tests of the commands
        # make it.
        settings |= {"force": True, **options}
        try:
            return train(self.recipe, self.config, data=self.data, out=out, options=RunOptions(**settings))
        finally:
            for handle in handles:
                handle.remove()

    def _child(self, out: Path, faults: tuple[Fault, ...], options: dict[str, Any]) -> None:
        self.here(out, *faults, **options)
