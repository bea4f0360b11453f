"""What can happen to a run, at a step of your choice. No library code is patched.

A fault is a function of (the method's class, steps of the whole run). The child calls it before it
trains; the handle that it returns removes the fault. A fault reads the step of a forward pass from
its `progress`, so it works in a resumed run too.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from ssl_core import distributed

Fault = Callable[[type, int], RemovableHandle]


def before(step: int, act: Callable[[nn.Module], object], *, rank: int | None = None) -> Fault:
    """`act(method)` before each forward pass of `step`, on `rank` or on all ranks."""

    def fault(method: type, total: int) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if _is(module, args, method, total, step, rank):
                act(module)

        return register_module_forward_pre_hook(hook)

    return fault


def after(step: int, act: Callable[[nn.Module, Any], Any], *, rank: int | None = None) -> Fault:
    """Outputs after each forward pass of `step` become `act(method, outputs)` unless it is None."""

    def fault(method: type, total: int) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
            return act(module, outputs) if _is(module, args, method, total, step, rank) else None

        return register_module_forward_hook(hook)

    return fault


def _is(module: nn.Module, args: tuple[Any, ...], method: type, total: int, step: int, rank: int | None) -> bool:
    return _steps(module, method) and round(args[1] * total) == step and rank in (None, distributed.rank())


def _steps(module: nn.Module, method: type) -> bool:
    """Whether this is a pass of the run, and not of the sketch without values that says what a step
    costs."""
    return type(module) is method and not any(parameter.is_meta for parameter in module.parameters())


def kill(step: int, number: int = signal.SIGKILL, *, part: int = 0, rank: int | None = None) -> Fault:
    """Send the process a signal in micro-batch `part` of `step`; SIGKILL by default."""
    passes = itertools.count()

    def act(method: nn.Module, outputs: Any) -> None:
        if next(passes) == part:
            os.kill(os.getpid(), number)

    return after(step, act, rank=rank)


def poison(step: int, value: float = float("nan"), *, rank: int | None = None) -> Fault:
    """Make the loss of `step`, and so its gradient, non-finite."""

    def act(method: nn.Module, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**outputs, "loss": outputs["loss"] * value}

    return after(step, act, rank=rank)


def hold(step: int, reached: Path) -> Fault:
    """Create the file `reached` in `step` and wait there."""

    def act(method: nn.Module) -> None:
        reached.touch()
        time.sleep(3600)

    return before(step, act)


def limit_files(sizes: Mapping[int, int], *, fatal: bool) -> Fault:
    """Limit the size of files: `sizes` maps a step to the bytes that no file may exceed during it.

    A write beyond that fails as on a full disk (EFBIG). If `fatal`, it kills the process at exactly
    that byte. The kernel enforces this, so it holds for writes from any language.
    """

    def fault(method: type, total: int) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if _steps(module, method):
                limit_file_size(sizes.get(round(args[1] * total)), fatal=fatal)

        return register_module_forward_pre_hook(hook)

    return fault


def limit_file_size(size: int | None, *, fatal: bool = False) -> None:
    """Limit the size of files that this process writes from now on; None removes the limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def mutate(path: Path, rng: np.random.Generator) -> str:
    """Damage a file in a random, realistic way; returns a description of the damage."""
    data = bytearray(path.read_bytes())
    place = int(rng.integers(len(data)))
    kind = ("flip", "zero", "cut", "grow", "swap", "empty")[rng.choice(6, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05])]
    if kind == "flip":
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        end = min(len(data), place + int(rng.integers(1, 512)))
        if not any(data[place:end]):
            data[place] = 255
        else:
            data[place:end] = bytes(end - place)
    elif kind == "cut":
        del data[place:]
    elif kind == "grow":
        data += rng.bytes(int(rng.integers(1, 64)))
    elif kind == "swap":
        other = int(rng.integers(len(data)))
        if data[place] == data[other]:
            data[other] ^= 255
        data[place], data[other] = data[other], data[place]
    else:
        data.clear()
    path.write_bytes(data)
    return f"{kind} at byte {place} of {path.name}"


def mutate_json(text: str, rng: np.random.Generator) -> str:
    """`text`, a JSON object, with a value, a key or a few characters replaced."""
    values = json.loads(text)
    key = list(values)[int(rng.integers(len(values)))]
    what = rng.integers(4)
    if what == 0:
        values[key] = STRANGE[int(rng.integers(len(STRANGE)))]
    elif what == 1:
        values[key[: int(rng.integers(len(key)))] + "x"] = values.pop(key)
    elif what == 2 and isinstance(values[key], list):
        values[key].insert(0, STRANGE[int(rng.integers(len(STRANGE)))])
    else:
        text = json.dumps(values)
        place, length = int(rng.integers(len(text))), int(rng.integers(1, 4))
        return text[:place] + "".join(rng.choice(list('{}[]",:0-e9tn'), length)) + text[place + length :]
    return json.dumps(values)


_NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf")]
_TEXTS = ["", "fp64", "0", "None", "../../x", "\x00", "𝔘", "x" * 10_000]
_LISTS = [[], [[]], [1], [0.9, 0.95], [0.9, "x"], [None] * 3, [1e400], [1] * 1000, [-1, -1], [2**62, 2**62]]
STRANGE: tuple[Any, ...] = (None, True, False, -0.0, {}, {"a": 1}, *_NUMBERS, *_TEXTS, *_LISTS)
"""Values that hardly any field accepts."""


class KeepDouble(torch.overrides.TorchFunctionMode):
    """Code inside gets float64 where it asks for float32: fp32 losses agree to 1e-10 too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        double = [torch.float64 if arg is torch.float32 else arg for arg in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*double, **named)
