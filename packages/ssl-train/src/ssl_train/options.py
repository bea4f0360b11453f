"""How a run is carried out, apart from what it computes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_core.config import check


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out. None of this changes what is computed, so a resumed run may change it."""

    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    workers: int | None = None
    """loader processes; half the cores, at most 8, by default"""
    accumulate: int = 1
    """micro-batches per optimiser step, for batches that do not fit in memory"""
    compile: bool = False
    """torch.compile the step"""
    log_every: int = 10
    """steps between two lines of metrics.jsonl"""
    checkpoint_minutes: float = 10.0
    """time between two checkpoints; one is always written at the end and on SIGTERM"""
    stop_on_collapse: bool = False
    """end the run when the features have collapsed, instead of warning"""
    tensorboard: bool = False
    """also log to TensorBoard (extra `tensorboard`)"""
    wandb: str | None = None
    """also log to this Weights & Biases project (extra `wandb`)"""

    def __post_init__(self) -> None:
        check(
            self.workers is None or self.workers >= 0,
            "workers",
            self.workers,
            "must not be negative",
        )
        check(self.accumulate >= 1, "accumulate", self.accumulate, "must be at least 1")
        check(self.log_every >= 1, "log_every", self.log_every, "must be at least 1")
        check(self.checkpoint_minutes >= 0, "checkpoint_minutes", self.checkpoint_minutes, "must not be negative")
