"""The weights in a run's checkpoints: of a run that is not finished, or of an earlier step.

`checkpoints/step-000123/` of a run folder holds model.safetensors, the method's state_dict under
our own names, and state.json: the step, the method, its config, and the sums of the files. The
engine writes them (`ssl_train.checkpoint`); here they are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssl_core.hub.weights_file import WeightsError, sha256

CHECKPOINTS, MANIFEST = "checkpoints", "state.json"


def checkpoint_of(name: str | Path) -> Path | None:
    """The checkpoint that `name` means: of a run folder without weights the newest that is whole,
    of `run@1000` that of step 1,000; None where it means neither.

    Raises FileNotFoundError when the run has no such step, and WeightsError when all of its
    checkpoints are damaged.
    """
    folder, at, step = str(name).rpartition("@")
    if at and step.isdigit() and (Path(folder) / CHECKPOINTS).is_dir():
        found = Path(folder) / CHECKPOINTS / f"step-{int(step):06d}"
        if not found.is_dir():
            steps = ", ".join(str(number(path)) for path in newest_first(Path(folder))) or "none"
            raise FileNotFoundError(f"{folder} has no checkpoint of step {step}; it has {steps}")
        read_manifest(found)
        return found
    run = Path(name)
    if (run / MANIFEST).is_file() and not (run / "config.json").is_file():
        read_manifest(run)
        return run
    if (run / "config.json").is_file() or not (run / CHECKPOINTS).is_dir():
        return None
    damaged = []
    for path in newest_first(run):
        try:
            read_manifest(path)
            return path
        except WeightsError as error:
            damaged.append(str(error))
    if damaged:
        raise WeightsError(f"no checkpoint of {run} can be read: {'; '.join(damaged)}")
    return None


def newest_first(run: Path) -> list[Path]:
    """The checkpoints of a run folder."""
    found = [path for path in (run / CHECKPOINTS).glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=number, reverse=True)


def number(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.name[5:])


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises WeightsError when it or the weights are damaged."""
    file = checkpoint / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        known = {name: manifest[name] for name in ("step", "method", "config", "files")}
        # the optimiser's state is large, and not read here
        sums = {file: entry["sha256"] for file, entry in known["files"].items() if file != "optim.safetensors"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{file} is damaged, or an older version wrote it ({type(error).__name__}: {error})"
        ) from error
    for name, expected in {"model.safetensors": "", **sums}.items():
        if not (checkpoint / name).is_file() or sha256(checkpoint / name) != expected:
            raise WeightsError(f"{checkpoint / name} differs from what was written")
    return known
