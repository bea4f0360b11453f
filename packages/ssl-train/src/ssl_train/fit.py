"""The training loop. One function for every method, on one process or under `torchrun`."""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core import distributed
from ssl_core.config import ConfigError, TrainConfig
from ssl_core.device import autocast, seed_step
from ssl_core.errors import TrainingError
from ssl_core.schedule import cosine, warmup_cosine
from ssl_train.checkpoint import CheckpointError, Checkpoints
from ssl_train.data.loader import Batches, Plan, default_workers
from ssl_train.log import Log
from ssl_train.optim import build_optimizer, schedule
from ssl_train.options import RunOptions
from ssl_train.probe import Collapsed, Probe
from ssl_train.processes import keep_freed_memory
from ssl_train.stop import Interrupted, StopSignal


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite; the optimiser was not stepped and `nan-<step>.json` says where."""


def fit(
    method: nn.Module,
    source: Any,
    transform: Any,
    config: TrainConfig,
    folder: Path,
    *,
    run_id: str,
    device: torch.device,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    probe: Probe | None = None,
) -> dict[int, tuple[str, str]]:
    """Train `method` (already on `device`) on `source` and leave its last checkpoint in `folder`.

    Goes on from the newest checkpoint of `run_id` and ends with the same bits as an uninterrupted run. Returns the
    unreadable samples, index -> (name, reason).
    Raises Interrupted (exit code 75) after a signal, saved; NonFiniteLoss; Collapsed when asked to; CheckpointError
    when the last checkpoint cannot be written; LoaderError when a loader process dies or hangs.
    """
    if device.type == "cpu":
        keep_freed_memory()
    plan = Plan(len(source), config.batch_size, config.epochs, config.seed)
    if options.accumulate > 1 and not getattr(method, "accumulates", False):
        raise ConfigError(f"{type(method).__name__}'s loss spans the batch: micro-batches do not add up to it")
    total, warmup = plan.steps, round(config.warmup_epochs * plan.steps_per_epoch)
    optimizer = build_optimizer(method, config)
    scaler = torch.amp.GradScaler(device.type) if config.precision == "fp16" else None  # type: ignore[attr-defined]
    checkpoints = Checkpoints(folder / "checkpoints", run_id)
    start = checkpoints.restore(method, optimizer, scaler)
    model = wrap(method.train(), device, compiled=options.compile)
    workers = default_workers() if options.workers is None else options.workers
    batches = Batches(
        source, transform, plan, start=start, parts=options.accumulate, workers=workers,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    meter, saved_at, skipped = _Meter(), time.monotonic(), 0
    with (
        StopSignal() as stop,
        batches.watched(),
        Log(folder, total=total, start=start, options=options, quiet=not distributed.is_main()) as log,
    ):
        steps = iter(batches)
        for step in range(start, total):
            with meter.waiting():
                parts = next(steps)
            progress = step / total
            lr = warmup_cosine(step, total=total, warmup=warmup, peak=config.lr, final=min(config.min_lr, config.lr))
            decay = cosine(progress, config.weight_decay, config.weight_decay_end or config.weight_decay)
            schedule(optimizer, lr=lr, peak=config.lr, weight_decay=decay)
            outputs = _backward(model, passes(method, parts), progress, config, device, scaler, step)
            due = time.monotonic() - saved_at > 60 * options.checkpoint_minutes
            loss, stopping, saving = _agree(outputs["loss"], stop.requested, due)
            if not math.isfinite(loss):
                raise _non_finite(folder, step, outputs["loss"], parts, meter)
            if scaler is not None:
                scaler.unscale_(optimizer)
            norm = gradient_norm(method, config.clip_grad)
            skipped = _check_gradient(norm, scaler, skipped, step)
            _call(method, "before_step", progress)
            scaler.step(optimizer) if scaler else optimizer.step()
            if scaler is not None:
                scaler.update()
            optimizer.zero_grad(set_to_none=True)
            _call(method, "after_step", progress)
            meter.count(config.batch_size, loss)

            done = step + 1
            last = done == total
            look = probe if probe and distributed.is_main() and (last or probe.due(done)) else None
            if done % options.log_every == 0 or last or look:
                scalars = {key: float(value) for key, value in outputs.items()}
                rates = meter.rates()
                health = _look(look, method, done, scalars, progress, options) if look else {}
                meter.reset()
                log.write(done, {
                    "epoch": round(done / plan.steps_per_epoch, 4), **scalars, "loss": loss, "lr": lr,
                    "weight_decay": decay, "grad_norm": float(norm), **rates, **health,
                })  # fmt: skip
            log.show(loss=f"{loss:.4f}", **meter.shown())
            if saving or stopping or last:
                saved_at = time.monotonic()
                _save(checkpoints, done, method, optimizer, scaler, must=last or stopping)
            if stopping and not last:
                raise Interrupted(done)
    return {index: why for bad in distributed.gather_objects(batches.bad) for index, why in bad.items()}


def gradient_norm(method: nn.Module, limit: float | None) -> Tensor:
    """Norm of the whole gradient, cut to `limit`; without one the gradient is only read, which takes half the time."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(method.parameters(), limit)
    return nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])


def wrap(method: nn.Module, device: torch.device, *, compiled: bool = False) -> nn.Module:
    """`method` as the loop calls it: under DDP where there are several processes, compiled where asked."""
    model = method
    if distributed.world_size() > 1:
        # The method keeps its ranks' buffers equal itself (gathered queues, all-reduced statistics).
        ids = [device.index] if device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
        model = DistributedDataParallel(_Step(method), device_ids=ids, **{sync: False})  # type: ignore[arg-type]
        model(None, 0.0)["loss"].backward()
        method.zero_grad(set_to_none=True)
    return torch.compile(model) if compiled else model  # type: ignore[return-value]


class _Step(nn.Module):
    """A method under DDP, which orders its buckets by the first pass.

    That pass has no batch and touches every weight in a fixed order: else a resumed run would sum the gradients of
    three or more processes in another order in its first step, and end with other bits.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: dict[str, Any] | None, progress: float) -> dict[str, Tensor]:
        if batch is None:
            return {"loss": sum((0 * p.sum() for p in self.method.parameters() if p.requires_grad), torch.zeros(()))}
        return self.method(batch, progress)


def passes(method: nn.Module, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What forward is called with in a step: one micro-batch after the other, or all where the method asks for them."""
    jointly = len(parts) > 1 and getattr(method, "accumulates", False) == "jointly"
    return [{"micro_batches": parts}] if jointly else parts


def _backward(
    model: nn.Module, parts: list[dict[str, Any]], progress: float, config: TrainConfig,
    device: torch.device, scaler: Any, step: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradient of the mean over micro-batches; their mean outputs."""
    outputs: dict[str, Tensor] = {}
    for i, batch in enumerate(parts):
        seed_step(config.seed, step, distributed.rank(), i)
        last = i == len(parts) - 1
        sync = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with sync:
            with autocast(config.precision, device):
                out = model(to_device(batch, device), progress)
            loss = out["loss"] / len(parts)
            (scaler.scale(loss) if scaler else loss).backward()
        for key, value in out.items():
            outputs[key] = outputs.get(key, 0) + value.detach().float() / len(parts)
    return outputs


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a batch on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, list):
        return [to_device(x, device) for x in batch]
    return {key: to_device(value, device) for key, value in batch.items()}


def _agree(loss: Tensor, stop: bool, save: bool) -> tuple[float, bool, bool]:
    """Mean loss over processes, and whether any of them stops, and whether the main one saves: one collective."""
    flags = loss.new_tensor([float(stop), float(save and distributed.is_main())])
    total = distributed.all_reduce_sum(torch.cat([loss.reshape(1), flags])).tolist()
    return total[0] / distributed.world_size(), total[1] > 0, total[2] > 0


def _non_finite(folder: Path, step: int, loss: Tensor, parts: list[dict[str, Any]], meter: _Meter) -> NonFiniteLoss:
    """The error, its facts written to nan-<step>.json: for every rank its loss and its samples."""
    samples = [int(i) for part in parts for i in part["index"].tolist()]
    ranks = distributed.gather_objects({"rank": distributed.rank(), "loss": str(float(loss)), "samples": samples})
    report = folder / f"nan-{step}.json"
    if distributed.is_main():
        report.write_text(json.dumps({"step": step, "ranks": ranks, "last_losses": meter.losses}, indent=1))
    return NonFiniteLoss(
        f"loss is {' '.join(rank['loss'] for rank in ranks)} at step {step}; the weights were not changed. The samples "
        f"are in {report}, the losses before were {[round(x, 4) for x in meter.losses]}. "
        "A lower --base-lr or --clip-grad often helps"
    )


def _check_gradient(norm: Tensor, scaler: Any, skipped: int, step: int) -> int:
    """Count of non-finite gradients in a row: the scaler skips them; without one, or three in a row, are an error."""
    if bool(torch.isfinite(norm)):
        return 0
    if scaler is None or skipped == 2:
        raise NonFiniteLoss(f"the gradient is {float(norm)} at step {step}; the weights were not changed")
    return skipped + 1


def _call(method: nn.Module, hook: str, progress: float) -> None:
    if (function := getattr(method, hook, None)) is not None:
        function(progress)


def _look(
    probe: Probe, method: Any, step: int, outputs: dict[str, float], progress: float, options: RunOptions
) -> dict[str, float]:
    """The features' health; a warning, or an error where one was asked for, when they or the method say collapse."""
    scores = probe(method)
    if not scores:
        return {}
    own = method.collapse({**outputs, **scores}, progress) if hasattr(method, "collapse") else None
    if (reason := own or probe.collapse(method, scores)) is not None:
        if options.stop_on_collapse:
            raise Collapsed(f"step {step}: {reason}")
        warnings.warn(f"step {step}: {reason}", stacklevel=2)
    return scores


def _save(
    checkpoints: Checkpoints,
    step: int,
    method: nn.Module,
    optimizer: Any,
    scaler: Any,
    *,
    must: bool,
) -> None:
    """Save on the main process; only a save that must succeed ends the run when it fails."""
    if distributed.is_main():
        try:
            checkpoints.save(step, method, optimizer, scaler)
        except CheckpointError as error:
            if must:
                raise
            warnings.warn(f"{error}; training goes on from the last good checkpoint", stacklevel=2)
    distributed.barrier()


class _Meter:
    """Samples per second, share of time spent waiting for data, and the last losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.last: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        self._began, self._waited, self._samples = time.perf_counter(), 0.0, 0
        self._mark = 0.0

    def waiting(self) -> _Meter:
        return self

    def __enter__(self) -> None:
        self._mark = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._waited += time.perf_counter() - self._mark

    def count(self, samples: int, loss: float) -> None:
        self._samples += samples
        self.losses = [*self.losses[-4:], loss]

    def rates(self) -> dict[str, float]:
        """Since the last `reset`."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        self.last = {
            "images_per_second": round(self._samples / elapsed, 2),
            "data_wait": round(self._waited / elapsed, 4),
        }
        return self.last

    def shown(self) -> dict[str, str]:
        if not self.last:
            return {}
        return {
            "img/s": f"{self.last['images_per_second']:.0f}",
            "wait": f"{self.last['data_wait']:.0%}",
        }
