"""What a run will cost: parameters, FLOPs, memory, time."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_core.device import pick_precision
from ssl_core.method import Recipe
from ssl_train.cost import Cost, gigabytes, on_meta
from ssl_train.data.loader import Plan

SHARE_OF_PEAK = 0.6
"""Share of the speed of large matrix products that a training step reaches (docs/benchmarks.md)."""


def estimate(
    recipe: Recipe, method: nn.Module, cost: Cost, device: torch.device, samples: int | None
) -> dict[str, Any]:
    """What pretraining `method` costs on this machine, and the whole run if `samples` are known.

    Sizes are bytes, times seconds.
    """
    config: Any = method.config
    precision = pick_precision(config.precision, device)
    rate = matmul_rate(device, precision)
    seconds = 3 * cost.multiply_adds * config.batch_size / (SHARE_OF_PEAK * rate)
    found = {
        "method": recipe.name,
        "parameters": sum(p.numel() for p in method.parameters()),
        "trained": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "multiply_adds": cost.multiply_adds,
        "memory": cost.fixed,
        "memory_of_batch": cost.activations * config.batch_size,
        "batch_size": config.batch_size,
        "device": device.type,
        "precision": precision,
        "multiply_adds_per_second": rate,
        "seconds_per_step": seconds,
    }
    if samples is not None:
        steps = Plan(samples, config.batch_size, config.epochs, config.seed).steps
        found |= {"samples": samples, "steps": steps, "seconds": seconds * steps}
    return found


def describe(found: dict[str, Any]) -> str:
    """An estimate in a few lines."""
    flops, batch = found["multiply_adds"], found["batch_size"]
    lines = [
        f"{found['method']}: {found['parameters']:,} parameters, {found['trained']:,} trained",
        f"{2 * flops / 1e9:.2f} GFLOPs forward per sample ({flops / 1e9:.2f} G multiply-adds), "
        "three times that in training",
        f"memory: {gigabytes(found['memory'])}, and {gigabytes(found['memory_of_batch'])} for a batch of {batch}",
        f"on this {found['device']} in {found['precision']} ({2 * found['multiply_adds_per_second'] / 1e9:,.0f} "
        f"GFLOP/s): about {_duration(found['seconds_per_step'])} a step",
    ]
    if "samples" in found:
        steps, total = found["steps"], _duration(found["seconds"])
        lines.append(f"{found['samples']:,} samples, {steps:,} steps of {batch}: about {total}")
    return "\n".join(lines)


def estimate_encoder(recipe: Recipe, method: Any) -> dict[str, Any]:
    """What an encoder costs that is not trained here."""
    h, w = method.config.size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        on_meta(method).eval().encode(torch.empty(1, method.config.in_channels, h, w))
    parameters, flops = sum(p.numel() for p in method.parameters()), counter.get_total_flops()
    return {"method": recipe.name, "parameters": parameters, "flops": flops, "image": [h, w]}


def describe_encoder(found: dict[str, Any]) -> str:
    """Its estimate in a line."""
    (h, w), flops = found["image"], found["flops"] / 1e9
    return f"{found['method']}: {found['parameters']:,} parameters, {flops:.2f} GFLOPs an image of {h} x {w}"


def matmul_rate(device: torch.device, precision: str) -> float:
    """Multiply-adds per second of a large matrix product on `device`. Measuring takes about a tenth
    of a second."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - start)
    return size**3 / best


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s"
