"""Checkpoints that survive whatever happens while they are written.

A checkpoint is a folder `step-000123/` of `model.safetensors` (the method's whole state_dict),
`optim.safetensors` and `state.json` (run id, step, sizes and sha256 of the files and of itself). It
is written under a temporary name, flushed to disk and renamed, so that a folder of that name is
always whole; the sums are checked when it is read, and a damaged one is passed over for the one
before. Random numbers need no state: they are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_core.errors import TrainingError
from ssl_core.hub.weights_file import fsync, save_weights

SCHEMA = 1


class CheckpointError(TrainingError):
    """No checkpoint of the run can be read, or the last one cannot be written."""


class Checkpoints:
    """The checkpoints of one run (`run_id`) below `folder`; the last two are kept."""

    def __init__(self, folder: Path, run_id: str, *, keep: int = 2) -> None:
        self.folder, self.run_id, self.keep = folder, run_id, keep
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        """Write `step-…`, atomically, and remove all but the newest `keep`.

        Raises CheckpointError when the disk is full or fails; the checkpoints that exist are
        untouched then.
        """
        temporary = self.folder / f"tmp-{step:06d}"
        final = self.folder / f"step-{step:06d}"
        tensors = {"model.safetensors": method.state_dict(), "optim.safetensors": _optimizer_tensors(optimizer)}
        try:
            for stale in self.folder.glob("tmp-*"):
                shutil.rmtree(stale)
            temporary.mkdir()
            for name, state in tensors.items():
                save_weights(temporary / name, _unshared(state))
            state = {
                "schema": SCHEMA,
                "run_id": self.run_id,
                "step": step,
                "torch": torch.__version__,
                "scaler": scaler.state_dict() if scaler is not None else {},
                "files": {name: _fingerprint(temporary / name) for name in tensors},
            }
            (temporary / "state.json").write_text(json.dumps({**state, "sha256": _sum(state)}, indent=1))
            for path in (temporary / "state.json", temporary):
                fsync(path)
            if final.exists():
                self._remove(final)
            temporary.rename(final)
            fsync(self.folder)
            self._rotate(step)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            need = sum(t.numel() * t.element_size() for s in tensors.values() for t in s.values())
            free = shutil.disk_usage(self.folder).free
            what = f"checkpoint of step {step} could not be written to {self.folder} ({error}):"
            raise CheckpointError(f"{what} it needs {need:,} bytes, {free:,} are free") from error

    def restore(self, method: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> int:
        """Load the newest whole checkpoint of this run and return its step; 0 when the run has
        none.

        A damaged one and a half-written one are named in a warning and passed over. Raises
        CheckpointError when all are damaged, or when one does not fit the method.
        """
        for left in self.folder.glob("tmp-*"):
            warnings.warn(f"{left} is left over from a save that was interrupted, and is ignored", stacklevel=2)
        damaged = []
        for folder in self._newest_first():
            try:
                state = _read_state(folder)
                if state["run_id"] != self.run_id:
                    continue
                tensors = _read_tensors(folder, state)
            except (OSError, ValueError, SafetensorError) as error:
                damaged.append(f"{folder.name}: {error}")
                warnings.warn(f"checkpoint {folder} is damaged and passed over: {error}", stacklevel=2)
                continue
            try:
                method.load_state_dict(tensors["model.safetensors"])
                _load_optimizer(optimizer, tensors["optim.safetensors"])
            except (RuntimeError, ValueError) as error:
                raise CheckpointError(f"{folder} does not fit {type(method).__name__} as it is now: {error}") from error
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])
            return int(state["step"])
        if damaged:
            what = f"no checkpoint in {self.folder} can be read: {'; '.join(damaged)}."
            raise CheckpointError(f"{what} Delete the folder to start the run again")
        return 0

    def _newest_first(self) -> list[Path]:
        found = [f for f in self.folder.glob("step-*") if f.name[5:].isdigit()]
        return sorted(found, key=lambda f: int(f.name[5:]), reverse=True)

    def _rotate(self, newest: int) -> None:
        mine = []
        for folder in self._newest_first():
            try:
                if _read_state(folder)["run_id"] == self.run_id:
                    mine.append(folder)
            except (OSError, ValueError):  # damaged, and named when the run was resumed
                continue
        # A later one than the newest was passed over as damaged: the run has come back to where it
        # was.
        later = [f for f in mine if int(f.name[5:]) > newest]
        earlier = [f for f in mine if int(f.name[5:]) < newest]
        for old in (*later, *earlier[self.keep - 1 :]):
            self._remove(old)

    def _remove(self, folder: Path) -> None:
        """Delete a checkpoint so that no half of it is ever seen under its name."""
        away = folder.rename(folder.with_name(f"tmp-{folder.name}"))
        shutil.rmtree(away)


def bytes_needed(method: nn.Module) -> int:
    """Bytes that a checkpoint of `method` with AdamW's state takes, about."""
    state = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    return state + sum(2 * p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)


def _read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint; ValueError when it is damaged or of another format."""
    state = json.loads((folder / "state.json").read_text())
    if not isinstance(state, dict) or state.pop("sha256", None) != _sum(state):
        raise ValueError("state.json differs from what was written")
    if state["schema"] != SCHEMA:
        raise ValueError(f"written in format {state['schema']}, this version reads {SCHEMA}")
    return state


def _read_tensors(folder: Path, state: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """file name -> its tensors; ValueError when one of the files differs from what was written."""
    for name, expected in state["files"].items():
        if _fingerprint(folder / name) != expected:
            raise ValueError(f"{name} differs from what was written")
    return {name: load_file(folder / name) for name in state["files"]}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, keyed "parameter/slot"."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for slot, value in optimizer.state[parameter].items():
                tensors[f"{name}/{slot}"] = value
    return tensors


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        slots.setdefault(name, {})[slot] = value
    known = {name for group in optimizer.param_groups for name in group["param_names"]}
    if unknown := sorted(slots.keys() - known):
        raise ValueError(f"it holds the optimiser's state of {unknown[:5]}, which are not trained")
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            optimizer.state[parameter] = {
                slot: value if slot == "step" and not parameter.is_cuda else _laid_out(value, parameter)
                for slot, value in slots.get(name, {}).items()
            }


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` on the parameter's device and in its memory layout, which the fused optimisers take
    for granted."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors none of which shares memory with another: what safetensors can write."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return out


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


def _sum(state: dict[str, Any]) -> str:
    """sha256 of what state.json says, however it is laid out."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
