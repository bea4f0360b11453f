"""Compare the states of runs bit for bit, and find state outside a method's state_dict."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def newest(run: Path) -> Path:
    """The newest checkpoint folder of a run. FileNotFoundError if there is none."""
    found = sorted((run / "checkpoints").glob("step-*"))
    if not found:
        raise FileNotFoundError(f"{run} holds no checkpoint")
    return found[-1]


def whole_state(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: the method's and the optimiser's."""
    return {
        f"{part}: {name}": tensor
        for part in ("model", "optim")
        for name, tensor in load_file(checkpoint / f"{part}.safetensors").items()
    }


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """A line per tensor whose bits, shape or dtype differ, or that one side lacks; [] if equal."""
    lines = [f"{name} is on one side only" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        x, y = a[name].detach().cpu(), b[name].detach().cpu()
        if x.dtype != y.dtype or x.shape != y.shape:
            lines.append(f"{name}: {x.dtype} {tuple(x.shape)} against {y.dtype} {tuple(y.shape)}")
        elif _bytes(x) != _bytes(y):
            gap = (x.double() - y.double()).abs().max().item()
            lines.append(f"{name}: values differ by up to {gap:.2g}")
    return lines


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """Like `differing`, but values may differ by `tolerance` times max(1, the tensor's maximum)."""
    lines = [f"{name} is on one side only" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        x, y = a[name].detach().double(), b[name].detach().double()
        if x.shape != y.shape:
            lines.append(f"{name}: {tuple(x.shape)} against {tuple(y.shape)}")
        elif x.numel() and not (gap := (x - y).abs().max().item()) <= tolerance * max(1.0, y.abs().max().item()):
            lines.append(f"{name}: values differ by up to {gap:.2g}")
    return lines


def hidden_state(method: nn.Module) -> dict[str, str]:
    """A fingerprint of every value that `method` keeps outside its state_dict, by its path.

    These are tensors, arrays, numbers and strings in attributes of its modules, also inside lists,
    dicts and dataclasses, and non-persistent buffers. What a step changes here is lost on resume.
    """
    saved = {id(tensor) for tensor in method.state_dict(keep_vars=True).values()}
    found: dict[str, str] = {}
    for name, module in method.named_modules():
        place = ".".join(part for part in (type(method).__name__, name) if part)
        own = {k: v for k, v in vars(module).items() if k not in _MACHINERY}
        buffers = {k: v for k, v in module.named_buffers(recurse=False) if id(v) not in saved}
        _walk({**own, **buffers}, place, saved, found)
    return found


_MACHINERY = {*vars(nn.Module()), "config"}


def _walk(value: Any, place: str, saved: set[int], found: dict[str, str]) -> None:
    if isinstance(value, Tensor):
        if id(value) not in saved:
            found[place] = f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()}"
    elif isinstance(value, np.ndarray):
        found[place] = f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        found[place] = repr(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _walk(item, f"{place}.{key}", saved, found)
    elif isinstance(value, list | tuple | set | frozenset):
        for i, item in enumerate(value):
            _walk(item, f"{place}[{i}]", saved, found)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _walk(vars(value) if hasattr(value, "__dict__") else dataclasses.asdict(value), place, saved, found)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
