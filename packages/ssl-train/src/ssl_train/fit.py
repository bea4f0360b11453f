"""The training loop. One function for every method, on one process or under `torchrun`."""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core import distributed
from ssl_core.config import ConfigError, TrainConfig
from ssl_core.device import autocast, seed_step
from ssl_core.schedule import cosine
from ssl_train.checkpoint import Checkpoints
from ssl_train.data.loader import Batches, Plan, TooManyBadSamples, default_workers
from ssl_train.errors import TrainingError
from ssl_train.log import Log, Meter
from ssl_train.optim import LossScaler, build_optimizer, schedule, warmup_cosine
from ssl_train.options import RunOptions
from ssl_train.probe import Collapsed, Probe
from ssl_train.processes import by_main, gather_objects, keep_freed_memory
from ssl_train.stop import Interrupted, StopSignal


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite. The optimiser was not stepped; `nan-<step>.json` holds the
    facts."""


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

    It resumes from the newest checkpoint of `run_id` and ends with the same bits as an
    uninterrupted run. Returns the unreadable samples and the pictures of one colour, index ->
    (name, reason). Raises Interrupted (exit code 75) after a signal, saved; NonFiniteLoss;
    Collapsed if the options ask for it; CheckpointError if the last checkpoint cannot be written;
    TooManyBadSamples, saved; LoaderError if a loader process dies or hangs.
    """
    if device.type == "cpu":
        keep_freed_memory()
    plan = Plan(len(source), config.batch_size, config.epochs, config.seed)
    total, rank = plan.steps, distributed.rank()
    if options.accumulate > 1 and not getattr(method, "accumulates", False):
        raise ConfigError(f"{type(method).__name__}'s loss spans the batch: micro-batches do not add up to it")
    optimizer = build_optimizer(method, config)
    scaler = LossScaler(device.type, enabled=config.precision == "fp16")
    checkpoints = Checkpoints(folder / "checkpoints", run_id, keep_every=options.keep_every)
    start = checkpoints.restore(method, optimizer, scaler)
    model = wrap(method.train(), device, compiled=options.compile)
    workers = default_workers() if options.workers is None else options.workers
    loading = {"parts": options.accumulate, "workers": workers, "pin_memory": device.type == "cuda"}
    batches = Batches(source, transform, plan, start=start, **loading)
    saved_at = time.monotonic()

    with StopSignal() as stop, batches.watched(), Log(folder, total, start, options, quiet=rank > 0) as log:
        meter, steps = Meter("img" if hasattr(config, "image_size") else "rows"), iter(batches)
        for step in range(start, total):
            try:
                parts = meter.wait_for(steps)
            except TooManyBadSamples:  # there is no batch: the data are gone
                if rank == 0 and step > start:
                    checkpoints.save_or_rescue(step, method, optimizer, scaler)
                raise
            progress = step / total
            lr, decay = lr_and_decay(config, plan, step)
            schedule(optimizer, lr=lr, peak=config.lr, weight_decay=decay)

            # Forward and backward of each micro-batch. Gradients and outputs add up to those of the
            # joined batch: each counts for its share of the step.
            outputs: dict[str, Tensor] = {}
            given = passes(method, parts)
            for i, (batch, share) in enumerate(given):
                seed_step(config.seed, step, rank, i)
                with _gradients_summed(model, last=i + 1 == len(given)):
                    with autocast(config.precision, device):
                        out = model(to_device(batch, device), progress)
                    scaler.scale(out["loss"] * share).backward()
                for key, value in out.items():
                    outputs[key] = outputs.get(key, 0) + value.detach().float() * share

            # All processes agree to stop or to save. A loss that is not finite steps nothing.
            due = time.monotonic() - saved_at > 60 * max(options.checkpoint_minutes, checkpoints.pause)
            due |= options.keep_every is not None and (step + 1) % options.keep_every == 0
            wanted = stop.requested or batches.spoilt is not None
            loss, stopping, saving = _agree(outputs["loss"], wanted, due)
            if not math.isfinite(loss):
                raise _non_finite(folder, step, outputs["loss"], parts, meter)

            # The optimiser's step, between the method's two hooks.
            scaler.unscale_(optimizer)
            norm = gradient_norm(method, config.clip_grad)
            if not scaler.tolerates(norm):
                wider = "; bf16 and fp32 have a wider range: --precision" if scaler.is_enabled() else ""
                raise NonFiniteLoss(
                    f"the gradient is {float(norm)} at step {step}; the weights were not changed{wider}"
                )
            _call(method, "before_step", progress)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            _call(method, "after_step", progress)
            meter.count(config.batch_size, loss)

            # The log, with the health of the features from time to time.
            done, last = step + 1, step + 1 == total
            look = probe if probe and rank == 0 and (last or probe.due(done)) else None
            if done % options.log_every == 0 or last or look:
                scalars = {key: float(value) for key, value in outputs.items()}
                line = {"epoch": round(done / plan.steps_per_epoch, 4), **scalars, "loss": loss, "lr": lr}
                line |= {"weight_decay": decay, "grad_norm": float(norm), **meter.rates()}
                if look:
                    health, collapse = look.examine(method, scalars, progress)
                    line |= health
                    _tell_of(collapse, done, stop=options.stop_on_collapse)
                meter.reset()
                log.write(done, line)
            log.show(loss=f"{loss:.4f}", **meter.shown())

            # The checkpoint. Only a last one must succeed.
            if saving or stopping or last:
                saved_at = time.monotonic()
                save = checkpoints.save_or_rescue if stopping or last else checkpoints.try_save
                by_main(lambda save=save, done=done: save(done, method, optimizer, scaler))
            if stopping:
                for spoilt in filter(None, gather_objects(batches.spoilt)):
                    raise spoilt
                if not last:
                    raise Interrupted(done)
    return {index: why for bad in gather_objects(batches.blank | batches.bad) for index, why in bad.items()}


def lr_and_decay(config: TrainConfig, plan: Plan, step: int) -> tuple[float, float]:
    """(learning rate, weight decay) of a step: warm-up and cosine, and a cosine of its own."""
    warmup = round(config.warmup_epochs * plan.steps_per_epoch)
    final = min(config.min_lr, config.lr)  # a peak below min_lr is held
    lr = warmup_cosine(step, total=plan.steps, warmup=warmup, peak=config.lr, final=final)
    return lr, cosine(step / plan.steps, config.weight_decay, config.weight_decay_end or config.weight_decay)


def passes(method: nn.Module, parts: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """What forward is called with in a step, each with the share that its loss has in the step's.

    These are the micro-batches `parts`, or all of them at once if the method asks for that. The
    shares are equal, unless the method counts the `targets` of a batch: its loss is a mean over
    them, so a micro-batch with twice as many counts twice. Targets are counted over all processes.
    """
    if len(parts) > 1 and getattr(method, "accumulates", False) == "jointly":
        return [({"micro_batches": parts}, 1.0)]
    targets = getattr(method, "targets", None)
    if len(parts) == 1 or targets is None:
        return [(part, 1 / len(parts)) for part in parts]
    device = next(method.parameters()).device
    counts = distributed.all_reduce_sum(torch.tensor([int(targets(part)) for part in parts], device=device)).tolist()
    return [(part, count / max(1, sum(counts))) for part, count in zip(parts, counts, strict=True)]


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a batch on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, list):
        return [to_device(x, device) for x in batch]
    return {key: to_device(value, device) for key, value in batch.items()}


def gradient_norm(method: nn.Module, limit: float | None) -> Tensor:
    """Norm of the whole gradient, which is clipped to `limit`. Only reading it takes half the
    time."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(method.parameters(), limit)
    return nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])


def wrap(method: nn.Module, device: torch.device, *, compiled: bool = False) -> nn.Module:
    """`method` as the loop calls it: under DDP if there are several processes, compiled if asked
    for."""
    model = method
    if distributed.world_size() > 1:
        # Methods synchronise their own buffers across ranks (gathered queues, all-reduced
        # statistics), so DDP need not broadcast them.
        ids = [device.index] if device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
        model = DistributedDataParallel(_Step(method), device_ids=ids, **{sync: False})  # type: ignore[arg-type]
        model(None, 0.0)["loss"].backward()
        method.zero_grad(set_to_none=True)
    return torch.compile(model) if compiled else model  # type: ignore[return-value]


class _Step(nn.Module):
    """A method under DDP, which orders its buckets of gradients by the first pass.

    Our first pass has no batch and touches every weight in a fixed order. Without it the first step
    of a resumed run would sum the gradients of three or more processes in another order, and the
    run would end with other bits.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: dict[str, Any] | None, progress: float) -> dict[str, Tensor]:
        if batch is None:
            return {"loss": sum((0 * p.sum() for p in self.method.parameters() if p.requires_grad), torch.zeros(()))}
        return self.method(batch, progress)


def _gradients_summed(model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Context of a backward pass: DDP sums gradients over processes in that of the last micro-batch
    alone."""
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def _agree(loss: Tensor, stop: bool, save: bool) -> tuple[float, bool, bool]:
    """(mean loss over processes, whether any of them stops, whether the main one saves), in one
    collective."""
    flags = loss.new_tensor([float(stop), float(save and distributed.is_main())])
    total = distributed.all_reduce_sum(torch.cat([loss.reshape(1), flags])).tolist()
    return total[0] / distributed.world_size(), total[1] > 0, total[2] > 0


def _non_finite(folder: Path, step: int, loss: Tensor, parts: list[dict[str, Any]], meter: Meter) -> NonFiniteLoss:
    """The error, after `nan-<step>.json` got the facts: the loss and the samples of every rank."""
    samples = [int(i) for part in parts for i in part["index"].tolist()]
    ranks = gather_objects({"rank": distributed.rank(), "loss": str(float(loss)), "samples": samples})
    report = folder / f"nan-{step}.json"
    where = f"The samples are in {report}"
    if distributed.is_main():
        try:
            report.write_text(
                json.dumps({"step": step, "ranks": ranks, "last_losses": meter.losses}, indent=1), "utf-8"
            )
        except OSError as error:
            where = f"{report} could not be written ({error}); the samples are {[rank['samples'] for rank in ranks]}"
    return NonFiniteLoss(
        f"loss is {' '.join(rank['loss'] for rank in ranks)} at step {step}; the weights were not changed. {where}, "
        f"the losses before were {[round(x, 4) for x in meter.losses]}. A lower --base-lr or --clip-grad often helps"
    )


def _call(method: nn.Module, hook: str, progress: float) -> None:
    if (function := getattr(method, hook, None)) is not None:
        function(progress)


def _tell_of(collapse: str | None, step: int, *, stop: bool) -> None:
    """Warn of a collapse, or raise Collapsed to `stop`."""
    if collapse is not None:
        if stop:
            raise Collapsed(f"step {step}: {collapse}")
        warnings.warn(f"step {step}: {collapse}", stacklevel=2)
