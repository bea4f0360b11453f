"""The record of a run: metrics.jsonl always, a progress bar, trackers on request."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from ssl_core.config import RunOptions


class Log:
    """Appends one JSON object per logged step to `folder/metrics.jsonl` and shows a bar over `total` steps.

    TensorBoard and Weights & Biases get the same scalars; a tracker that fails is named once and left alone, since
    metrics.jsonl is the record.
    """

    def __init__(
        self, folder: Path, *, total: int, start: int, options: RunOptions, quiet: bool = False
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.start = time.perf_counter()
        self.trackers = [] if quiet else _trackers(folder, options)
        self._file = None if quiet else self._open()
        slow = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(total=total, initial=start, disable=quiet, mininterval=slow, unit="step")

    def _open(self) -> Any:
        torn = (
            self.path.exists() and self.path.stat().st_size and self.path.read_bytes()[-1:] != b"\n"
        )
        file = self.path.open("a", encoding="utf-8")
        if torn:
            file.write("\n")
        return file

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        if self._file is not None:
            self._file.close()
        for tracker in self.trackers:
            tracker.close()

    def write(self, step: int, scalars: dict[str, float | int]) -> None:
        """One line for `step`; seconds since the process began training are added."""
        if self._file is None:
            return
        line = {"step": step, **scalars, "seconds": round(time.perf_counter() - self.start, 3)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for tracker in list(self.trackers):
            try:
                tracker.log(step, scalars)
            except Exception as error:
                self.trackers.remove(tracker)
                warnings.warn(
                    f"{tracker.name} failed and is left alone from here on: {error}", stacklevel=2
                )

    def show(self, **scalars: str) -> None:
        self.bar.set_postfix(scalars, refresh=False)
        self.bar.update()


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, scalars: dict[str, float | int]) -> None:
        for key, value in scalars.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    name = "Weights & Biases"

    def __init__(self, folder: Path, project: str) -> None:
        import wandb

        self.run = wandb.init(project=project, dir=str(folder), id=_run_id(folder), resume="allow")

    def log(self, step: int, scalars: dict[str, float | int]) -> None:
        self.run.log(scalars, step=step)

    def close(self) -> None:
        self.run.finish()


def _run_id(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["run_id"]


def _trackers(folder: Path, options: RunOptions) -> list[Any]:
    wanted: list[tuple[str, Any]] = []
    if options.tensorboard:
        wanted.append(("tensorboard", lambda: _TensorBoard(folder)))
    if options.wandb:
        wanted.append(("wandb", lambda: _Wandb(folder, options.wandb or "")))
    trackers = []
    for extra, make in wanted:
        try:
            trackers.append(make())
        except ImportError as error:
            raise ImportError(
                f"logging to {extra} needs the extra: pip install 'ssl-core[{extra}]'"
            ) from error
    return trackers
