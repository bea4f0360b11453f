"""How a run is carried out, as opposed to what it computes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_core.bounds import Checked, Count, NonNegative, Whole


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """How a run is carried out. These options do not change the result, so you may change them when
    you resume a run."""

    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    workers: Whole | None = None
    """loader processes; half the cores, at most 8, by default"""
    accumulate: Count = 1
    """micro-batches per optimiser step, for batches that do not fit in memory"""
    force: bool = False
    """start even if the estimate says that there is too little memory"""
    compile: bool = False
    """torch.compile the step"""
    log_every: Count = 10
    """steps between two lines of metrics.jsonl"""
    checkpoint_minutes: NonNegative = 10.0
    """time between two checkpoints; one is always written at the end and after a stop signal"""
    verify: bool = False
    """compare the content of every data file with that at the start of the run; reads all files"""
    keep_every: Count | None = None
    """keep a checkpoint of every so many steps; commands read that of step 1,000 as RUN@1000"""
    stop_on_collapse: bool = False
    """end the run when the features have collapsed, instead of warning"""
    track: tuple[str, ...] = ()
    """also log to these: tensorboard, wandb:PROJECT, mlflow:EXPERIMENT, trackio:PROJECT, or what
    another package brings"""
