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
) -> tuple[dict[str, Any], str]:
    """What pretraining `method` costs on this machine, and the whole run if `samples` are known: in
    numbers (bytes, seconds), and in a few lines."""
    config: Any = method.config
    precision = pick_precision(config.precision, device)
    parameters = sum(p.numel() for p in method.parameters())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    flops, batch = cost.multiply_adds, config.batch_size
    rate = matmul_rate(device, precision)
    seconds = 3 * flops * batch / (SHARE_OF_PEAK * rate)
    lines = [
        f"{recipe.name}: {parameters:,} parameters, {trained:,} trained",
        f"{2 * flops / 1e9:.2f} GFLOPs forward per sample ({flops / 1e9:.2f} G multiply-adds), "
        "three times that in training",
        f"memory: {gigabytes(cost.fixed)}, and {gigabytes(cost.activations * batch)} for a batch of {batch}",
        f"on this {device.type} in {precision} ({2 * rate / 1e9:,.0f} GFLOP/s): about {_duration(seconds)} a step",
    ]
    found = {"method": recipe.name, "parameters": parameters, "trained": trained, "multiply_adds": flops}
    found |= {"batch_size": batch, "memory": cost.fixed, "memory_of_batch": cost.activations * batch}
    found |= {"device": device.type, "precision": precision, "seconds_per_step": seconds}
    if samples is not None:
        steps = Plan(samples, batch, config.epochs, config.seed).steps
        lines.append(f"{samples:,} samples, {steps:,} steps of {batch}: about {_duration(seconds * steps)}")
        found |= {"samples": samples, "steps": steps, "seconds": seconds * steps}
    return found, "\n".join(lines)


def estimate_encoder(name: str, method: Any, images: Any) -> tuple[dict[str, Any], str]:
    """An encoder that is not trained here, in numbers and in a line; `images` is the config of what
    it sees."""
    h, w = images.size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        on_meta(method).eval().encode(torch.empty(1, images.in_channels, h, w))
    parameters, flops = sum(p.numel() for p in method.parameters()), counter.get_total_flops()
    text = f"{name}: {parameters:,} parameters, {flops / 1e9:.2f} GFLOPs an image of {h} x {w}"
    return {"method": name, "parameters": parameters, "flops": flops, "image": [h, w]}, text


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
