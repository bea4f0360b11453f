"""The cost of a training step, in multiply-adds and bytes, before anything is allocated.

We pass one empty sample through a copy of the method on the meta device, where tensors have shapes
but no values.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core.device import pick_precision
from ssl_core.errors import InputError
from ssl_core.method import Recipe, load
from ssl_train.machine import free_memory

ADAM = 12
"""Bytes beside a trained fp32 weight: its gradient, and the optimiser's two averages."""
ALWAYS = 130_000_000
"""Further bytes that any run takes, for pictures in the loader and inside the libraries."""
BESIDE_SAVED, BESIDE_SAVED_BY_CONVOLUTION = 1.3, 1.75
"""Memory of a step over what its forward pass saves: gradients under way, and the reordered copies
that convolutions on a CPU make. Measured by tools/memory.py (docs/benchmarks.md)."""
SAVED_IN_HALF = 0.6
"""Share of the fp32 activations that bf16 and fp16 save: norms and softmax stay in fp32."""


class NotEnoughMemory(InputError):
    """The run would take more memory than there is; the message says what fits."""


@dataclass(frozen=True)
class Cost:
    """The cost of one sample in a training step, and the bytes that stay between steps."""

    multiply_adds: float
    """of a sample's forward pass; training takes three times as many"""
    activations: float
    """bytes that a sample takes while it is between forward and backward pass"""
    fixed: int
    """bytes whatever the batch: weights, buffers, gradients, optimiser, libraries"""

    def bytes(self, samples: int) -> float:
        """Peak of a step of `samples` at once."""
        return self.fixed + samples * self.activations

    def fitting(self, free: int) -> int:
        """The largest power of two of samples that fit into `free` bytes; 0 if none fits."""
        samples = int((free - self.fixed) // max(1, self.activations))
        return 1 << (samples.bit_length() - 1) if samples > 0 else 0


def cost_of(recipe: Recipe, method: Any, device: torch.device) -> Cost:
    """The cost of a step of `method` on `device`. The method is not changed."""
    # in eval mode, since batch norm does not train on one sample
    multiply_adds, saved, convolved = step_cost(on_meta(method).eval(), sample(recipe, method.config))
    on_cpu = device.type == "cpu"
    beside = BESIDE_SAVED + (BESIDE_SAVED_BY_CONVOLUTION - BESIDE_SAVED) * convolved * on_cpu
    share = 1.0 if pick_precision(method.config.precision, device) == "fp32" else SAVED_IN_HALF
    held = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in (*method.parameters(), *method.buffers())}
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return Cost(multiply_adds, saved * beside * share, ALWAYS + sum(held.values()) + ADAM * trained)


def check_memory(cost: Cost, method: Any, device: torch.device, *, parts: int) -> None:
    """NotEnoughMemory if a step of the config's batch in `parts` micro-batches, at this cost, does
    not fit into what `device` has free.

    The method is still on the CPU, where its weights are in memory already.
    """
    free, batch = free_memory(device), method.config.batch_size
    needed = cost.bytes(-(-batch // parts))
    if free is None or needed <= free:
        return
    what = (
        f"a step of {batch} samples needs about {gigabytes(needed)}, and the {device.type} has {gigabytes(free)} free"
    )
    fits = cost.fitting(free)
    if not fits:
        raise NotEnoughMemory(f"{what}: take a smaller network or smaller images, or --force to try all the same")
    advice = f"--batch-size {fits}"
    if getattr(method, "accumulates", False):
        advice += f", or --accumulate {-(-batch // fits)} for the same batch in parts"
    raise NotEnoughMemory(f"{what}: take {advice}, smaller images, or --force to try all the same")


def gigabytes(size: float) -> str:
    """`size` bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def on_meta(method: Any) -> Any:
    """A copy of `method` whose weights and buffers have shapes but no values.

    No constructor runs, and no memory is allocated.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in method.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in method.buffers()}
    return copy.deepcopy(method, memo)


def sample(recipe: Recipe, config: Any) -> dict[str, Any]:
    """A batch of one empty sample, as the method's views make it."""
    blank = load(recipe.blank)(config)
    made = load(recipe.views)(config)(blank, np.random.default_rng(0))
    return {key: [x[None] for x in value] if isinstance(value, list) else value[None] for key, value in made.items()}


def step_cost(method: nn.Module, batch: dict[str, Any]) -> tuple[float, int, float]:
    """(multiply-adds of the forward pass, bytes kept for the backward pass, share of convolutions
    in the multiply-adds) of one sample, for a method on meta."""
    from torch.utils.flop_counter import FlopCounterMode  # brings triton

    kept: dict[int, int] = {}
    weights = {id(p.untyped_storage()) for p in method.parameters()}  # a product keeps views of these

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            kept[id(storage)] = storage.nbytes()
        return tensor

    given = {k: [v.to("meta") for v in x] if isinstance(x, list) else x.to("meta") for k, x in batch.items()}
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        method(given, 0.0)
    flops = counter.get_total_flops()
    convolved = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0) / max(1, flops)
    return flops / 2, sum(kept.values()), convolved
