"""What a method costs before it runs: parameters, FLOPs, memory, time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_core.device import pick_device, pick_precision
from ssl_core.method import Recipe, load
from ssl_train.data.loader import Plan, collate

SHARE_OF_PEAK = 0.6
"""Share of the speed of large matrix products that a training step reaches (docs/benchmarks.md)."""


def describe(recipe: Recipe, config: Any, *, data: str | None, device: str | None, built_in: bool | None = None) -> str:
    """A few lines on the cost of pretraining with `config`, on this machine and, where it is known, this data.

    Without `data` the built-in data is meant where `built_in` says so, by default with the demo's config.
    """
    if not recipe.views:
        return describe_encoder(recipe, config)
    if built_in is None:
        built_in = config == recipe.presets["demo"]()
    known_data = data is not None or built_in
    target = pick_device(device)
    if known_data:
        config = recipe.settled(config, data)
    precision = pick_precision(config.precision, target)
    with torch.device("meta"):
        method = load(recipe.method)(config).eval()  # batch norm does not train on one sample
    parameters = sum(p.numel() for p in method.parameters())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    flops, activations = step_cost(method, sample(recipe, config))
    rate = matmul_rate(target, precision)
    seconds = 3 * flops * config.batch_size / (SHARE_OF_PEAK * rate)
    lines = [
        f"{recipe.name}: {parameters:,} parameters, {trained:,} trained",
        f"{2 * flops / 1e9:.2f} GFLOPs forward per sample ({flops / 1e9:.2f} G multiply-adds), "
        "three times that in training",
        f"memory: {trained * 16 / 1e9:.2f} GB for weights, gradient and AdamW, "
        f"{activations * config.batch_size / 1e9:.2f} GB for the activations of a batch of {config.batch_size}",
        f"on this {target.type} in {precision} ({2 * rate / 1e9:,.0f} GFLOP/s): about {_duration(seconds)} a step",
    ]
    if known_data:
        source = load(recipe.source)(data, config=config, split="train")
        plan = Plan(len(source), config.batch_size, config.epochs, config.seed)
        total = _duration(seconds * plan.steps)
        lines.append(f"{len(source):,} samples, {plan.steps:,} steps of {config.batch_size}: about {total}")
    return "\n".join(lines)


def describe_encoder(recipe: Recipe, config: Any) -> str:
    """A line on an encoder that is not trained here."""
    with torch.device("meta"):
        method = load(recipe.method)(config).eval()
        images = torch.empty(1, config.in_channels, *config.size)
        with FlopCounterMode(display=False) as counter:
            method.encode(images)
    parameters, flops = sum(p.numel() for p in method.parameters()), counter.get_total_flops()
    h, w = config.size
    return f"{recipe.name}: {parameters:,} parameters, {flops / 1e9:.2f} GFLOPs an image of {h} x {w}"


def sample(recipe: Recipe, config: Any) -> dict[str, Any]:
    """A batch of one, as the method's views make it, of a sample without content."""
    return collate([load(recipe.views)(config)(load(recipe.blank)(config), np.random.default_rng(0))])


def step_cost(method: nn.Module, batch: dict[str, Any]) -> tuple[float, int]:
    """(multiply-adds of the forward pass, bytes kept for the backward pass) of one sample, computed on no data."""
    kept: dict[int, int] = {}
    weights = {id(p.untyped_storage()) for p in method.parameters()}  # a product keeps views of them

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            kept[id(storage)] = storage.nbytes()
        return tensor

    on_meta = {k: [v.to("meta") for v in x] if isinstance(x, list) else x.to("meta") for k, x in batch.items()}
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        method(on_meta, 0.0)
    return counter.get_total_flops() / 2, sum(kept.values())


def matmul_rate(device: torch.device, precision: str) -> float:
    """Multiply-adds per second of a large matrix product on `device`, measured for a tenth of a second or so."""
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
