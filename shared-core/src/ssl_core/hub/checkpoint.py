"""The weights in a run's checkpoints: of a run that is not finished, or of an earlier step.

`checkpoints/step-000123/` of a run folder holds model.safetensors, the method's state_dict under
our own names, and state.json: the step, the method, its config, and the sums of the files. The
engine writes them (`ssl_train.checkpoint`); here they are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssl_core.hub.weights_file import WeightsError, sha256, sum_of

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
        verify(found)
        return found
    run = Path(name)
    if (run / MANIFEST).is_file() and not (run / "config.json").is_file():
        verify(run)
        return run
    if (run / "config.json").is_file() or not (run / CHECKPOINTS).is_dir():
        return None
    damaged = []
    for path in newest_first(run):
        try:
            verify(path)
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


def verify(checkpoint: Path) -> None:
    """Raises WeightsError when a file of a checkpoint that is read here is damaged."""
    files = read_manifest(checkpoint)["files"]
    for name in {"model.safetensors", *files} - {"optim.safetensors"}:  # that one is large, and not read here
        file = checkpoint / name
        if name not in files or not file.is_file() or sha256(file) != files[name]["sha256"]:
            raise WeightsError(f"{file} differs from what was written")


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises WeightsError when it is damaged."""
    file = checkpoint / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest.pop("sha256") != sum_of(manifest):
            raise ValueError("it differs from what was written")
        return {name: manifest[name] for name in ("step", "method", "config", "written_by", "files")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} is damaged ({type(error).__name__}: {error})") from error
