"""Checkpoints that survive whatever happens while they are written.

A checkpoint is a folder `step-000123/` of `model.safetensors` (the method's whole state_dict),
`optim.safetensors`, what reads the inputs (a tokenizer), and `state.json` (run id, step, method,
config, who wrote it in which format, sizes and sha256 of the files and of itself).
`from_pretrained` reads its weights. It is written under a temporary name, flushed to disk and
renamed, so a folder with the final name is always whole. The sums are checked on reading; a damaged
checkpoint is skipped and the one before it is used. Random numbers need no state: they are
functions of (seed, step).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import to_dict
from ssl_core.errors import ConfigError
from ssl_core.hub.format import later, writer, written_by
from ssl_core.hub.weights_file import fsync, save_weights, sha256, sum_of
from ssl_train.errors import TrainingError
from ssl_train.processes import broadcast_object, by_main

FORMAT = 1
"""of a checkpoint's files, beside that of the method's config"""


class CheckpointError(TrainingError):
    """No checkpoint of the run can be read, or the last one cannot be written."""


class Checkpoints:
    """The checkpoints of one run (`run_id`) below `folder`; the last two are kept, and those of
    every `keep_every` steps.

    Only the main process reads and writes them.
    """

    def __init__(self, folder: Path, run_id: str, *, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder, self.run_id, self.keep, self.keep_every = folder, run_id, keep, keep_every
        self.failures = 0
        """saves in a row that failed"""
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def pause(self) -> float:
        """Minutes to wait for the next save: 0, or after failures 0.2, 0.4, 0.8, … up to 10."""
        return min(10.0, 0.1 * 2.0**self.failures) if self.failures else 0.0

    def try_save(self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        """`save`, but a failure is a warning. Of several in a row only the first warns."""
        try:
            self.save(step, method, optimizer, scaler)
        except CheckpointError as error:
            self.failures += 1
            if self.failures == 1:
                again = "training goes on from the last good checkpoint and tries again later"
                warnings.warn(f"{error}; {again}", stacklevel=2)
            return
        if self.failures:
            warnings.warn(f"checkpoints can be written again, from step {step} on", stacklevel=2)
        self.failures = 0

    def save_or_rescue(
        self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None
    ) -> None:
        """`save`; if it fails, the checkpoint and the published weights go to a folder elsewhere.

        Raises CheckpointError then, too: the message says where they are.
        """

        def write(place: Path) -> None:
            if (publish := getattr(method, "save_pretrained", None)) is not None:
                publish(place)
            Checkpoints(place / "checkpoints", self.run_id).save(step, method, optimizer, scaler)

        try:
            self.save(step, method, optimizer, scaler)
        except CheckpointError as error:
            place = rescue(self.folder.parent, write)
            if place is None:
                raise
            move = f"move {place / 'checkpoints' / _name(step)} into the run's checkpoints folder"
            what = f"{error}. Step {step} and its weights were saved in {place} instead:"
            raise CheckpointError(f"{what} {move} and repeat the command to go on") from error

    def save(self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        """Write `step-…`, atomically, and remove all but the newest `keep`.

        Raises CheckpointError if the disk is full or fails; the existing checkpoints stay as they
        are.
        """
        temporary = self.folder / f"tmp-{step:06d}"
        final = self.folder / _name(step)
        tensors = {"model.safetensors": method.state_dict(), "optim.safetensors": _optimizer_tensors(optimizer)}
        try:
            for stale in self.folder.glob("tmp-*"):
                shutil.rmtree(stale)
            temporary.mkdir()
            for name, state in tensors.items():
                save_weights(temporary / name, _unshared(state))
            if (preprocessor := getattr(method, "save_preprocessor", None)) is not None:
                preprocessor(temporary)
            state = {
                "written_by": _written_by(method),
                "method": f"{type(method).__module__}:{type(method).__qualname__}",
                "config": to_dict(config) if (config := getattr(method, "config", None)) is not None else None,
                "run_id": self.run_id,
                "step": step,
                "torch": torch.__version__,
                "scaler": scaler.state_dict() if scaler is not None else {},
                "files": {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())},
            }
            (temporary / "state.json").write_text(json.dumps({**state, "sha256": sum_of(state)}, indent=1), "utf-8")
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
            what = f"checkpoint of step {step} could not be written to {self.folder} ({error}):"
            raise CheckpointError(f"{what} it needs {need:,} bytes, {free_bytes(self.folder)}") from error

    def restore(self, method: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> int:
        """Load the newest whole checkpoint of this run and return its step, or 0 if there is none.

        The main process chooses and reads it; the others receive what it read. Damaged checkpoints
        are skipped with a warning; what an interrupted save left is removed with a warning. Raises
        CheckpointError if all checkpoints are damaged, or if one does not fit the method.
        """
        tensors: dict[str, dict[str, Tensor]] = {}

        def read() -> dict[str, Any] | None:
            self._clear()
            found = self._newest_whole()
            if found is None:
                return None
            tensors.update(found[1])
            return found[0]

        state = by_main(read)
        if state is None:
            return 0
        for name in state["files"]:
            tensors[name] = _from_main(tensors.get(name, {}))
        try:
            method.load_state_dict(tensors["model.safetensors"])
            _load_optimizer(optimizer, tensors["optim.safetensors"])
        except (RuntimeError, ValueError) as error:
            what = f"{self.folder / _name(state['step'])} does not fit {type(method).__name__} as it is now"
            install = later(state["written_by"], _written_by(method))
            raise CheckpointError(f"{what}: {error}{install and f'; {install}'}") from error
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        return int(state["step"])

    def _clear(self) -> None:
        for left in self.folder.glob("tmp-*"):
            warnings.warn(f"{left} is left over from a save that was interrupted, and is removed", stacklevel=4)
            try:
                shutil.rmtree(left)
            except OSError as error:
                raise CheckpointError(f"{left} cannot be removed ({error}): delete it yourself") from error

    def _newest_whole(self) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
        """(state.json, the tensors by file) of the newest checkpoint that is not damaged; None if
        the run has no checkpoint."""
        damaged = []
        for folder in self._newest_first():
            try:
                state = _read_state(folder)
                if state["run_id"] != self.run_id:
                    continue
                return state, _read_tensors(folder, state)
            except ConfigError as error:
                raise CheckpointError(f"{folder} was {error}") from error
            except (OSError, ValueError, SafetensorError) as error:
                damaged.append(f"{folder.name}: {error}")
                warnings.warn(f"checkpoint {folder} is damaged and passed over: {error}", stacklevel=4)
        if damaged:
            what = f"no checkpoint in {self.folder} can be read: {'; '.join(damaged)}."
            raise CheckpointError(f"{what} Delete the folder to start the run again")
        return None

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
        # A checkpoint of a later step than this one was skipped as damaged when the run resumed.
        later = [f for f in mine if int(f.name[5:]) > newest]
        kept = self.keep_every or newest + 1
        earlier = [f for f in mine if int(f.name[5:]) < newest and int(f.name[5:]) % kept]
        for old in (*later, *earlier[self.keep - 1 :]):
            self._remove(old)

    def _remove(self, folder: Path) -> None:
        """Delete a checkpoint, renamed first so that no half of it is ever seen under its name."""
        away = folder.rename(folder.with_name(f"tmp-{folder.name}"))
        shutil.rmtree(away)


def rescue(folder: Path, write: Callable[[Path], object]) -> Path | None:
    """Call `write(place)` for a new folder beside `folder`, else in the system's temporary folder.

    Returns the place where it succeeded, None if it succeeded nowhere.
    """
    for parent in (folder.parent, Path(tempfile.gettempdir())):
        try:
            place = Path(tempfile.mkdtemp(prefix=f"{folder.name}-rescued-", dir=parent))
        except OSError:
            continue
        try:
            write(place)
            return place
        except (OSError, SafetensorError, CheckpointError):
            shutil.rmtree(place, ignore_errors=True)
    return None


def free_bytes(folder: Path) -> str:
    """How many bytes are free, in words; it raises nothing, so that it can stand in the message of
    an error of the disk."""
    try:
        return f"{shutil.disk_usage(folder).free:,} are free"
    except OSError as error:
        return f"the free space is unknown ({error.strerror})"


def bytes_needed(method: nn.Module) -> int:
    """Bytes that a checkpoint of `method` takes, about, with the state of AdamW."""
    state = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    return state + sum(2 * p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _from_main(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The main process's tensors on every process. They are sent one by one, so that a second copy
    of one tensor at a time is in memory."""
    return {name: broadcast_object(tensors.get(name)) for name in broadcast_object(list(tensors))}  # type: ignore[misc]


def _read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises ValueError if it is damaged, ConfigError if a later format
    of ssl-train wrote it."""
    state = json.loads((folder / "state.json").read_text("utf-8"))
    if not isinstance(state, dict) or state.pop("sha256", None) != sum_of(state):
        raise ValueError("state.json differs from what was written")
    later(state["written_by"], {"ssl-train": writer("ssl-train", FORMAT)})
    return state


def _written_by(method: nn.Module) -> dict[str, Any]:
    """Who writes a checkpoint of this method: those who state its config, and the engine."""
    config = getattr(method, "config", None)
    return {**(written_by(type(config)) if config else {}), "ssl-train": writer("ssl-train", FORMAT)}


def _read_tensors(folder: Path, state: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors. Raises ValueError if a file differs from what was written."""
    for name, expected in state["files"].items():
        if _fingerprint(folder / name) != expected:
            raise ValueError(f"{name} differs from what was written")
    return {name: load_file(folder / name) for name in state["files"] if name.endswith(".safetensors")}


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
    """`value` on the parameter's device and in its memory layout, which fused optimisers rely
    on."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors requires."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return out


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "size": path.stat().st_size}
