"""What a command says while it works, and the record of a run: metrics.jsonl always, a progress
bar, trackers on request."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm.auto import tqdm

from ssl_train.options import RunOptions

IN_A_LOG = "{desc} {n_fmt} of {total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"
"""A line of progress in a file."""
quiet = False
"""Whether `quietly` was entered."""


@contextmanager
def quietly() -> Iterator[None]:
    """Context in which `note` and `Progress` show nothing."""
    global quiet
    before, quiet = quiet, True
    try:
        yield
    finally:
        quiet = before


def note(text: str, file: IO[str] | None = None) -> None:
    """Print what is no result: what a command does and finds on its way."""
    if not quiet:
        print(text, file=file, flush=True)


def typed(*words: object) -> str:
    """A command as it can be copied into a shell of this system, with what has to be quoted."""
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join([str(word) for word in words])


def next_steps(*commands: str) -> list[str]:
    """Print commands that a user may want to run next, and return them."""
    for i, command in enumerate(commands):
        print(f"{'' if i else 'next':8} {command}")
    return list(commands)


class Progress(tqdm):
    """A bar of tqdm that a terminal shows on one line and a file as a line every half minute."""

    # all bars of a process share one lock, which a forked child can renew
    get_lock = tqdm.get_lock  # type: ignore[assignment]

    def __init__(self, *arguments: Any, disable: bool = False, **options: Any) -> None:
        if sys.stderr.isatty() or any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__):
            options |= {"mininterval": 0.5, "dynamic_ncols": True}
        else:
            options |= {"mininterval": 30.0, "bar_format": IN_A_LOG, "file": _Lines(sys.stderr)}
        super().__init__(*arguments, disable=disable or quiet, **options)


class _Lines:
    """A text file as tqdm writes to it: what would be drawn over itself becomes a line."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, text: str) -> None:
        if line := text.strip():
            self.file.write(f"{line}\n")

    def flush(self) -> None:
        self.file.flush()


class Log:
    """Appends a JSON object per logged step to `folder/metrics.jsonl` and shows a bar over `total`
    steps.

    Trackers (`ssl_train.trackers`) get the same scalars. The record is metrics.jsonl: a tracker
    that fails is named in a warning and dropped. Lines that cannot be written wait in memory until
    they can, and one warning says so. So no log ends a run.
    """

    def __init__(self, folder: Path, total: int, start: int, options: RunOptions, *, quiet: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self.start = time.perf_counter()
        self.trackers = {} if quiet else _started(folder, options.track)
        self._quiet, self._torn, self._warned = quiet, False, False
        self._waiting: list[bytes] = []
        self._file: Any = None
        self.bar = Progress(total=total, initial=start, disable=quiet, unit="steps")

    def _open(self) -> Any:
        self._torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        return self.path.open("ab", buffering=0)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the terminal may be gone, as after SIGHUP
            self.bar.close()
        self._flush()
        if self._waiting:
            warnings.warn(f"{len(self._waiting)} lines of {self.path} are lost", stacklevel=2)
        if self._file is not None:
            self._file.close()
        for name, tracker in self.trackers.items():
            try:
                tracker.finish()
            except Exception as error:
                warnings.warn(f"{name} failed at its end: {error}", stacklevel=2)

    def write(self, step: int, scalars: dict[str, float | int]) -> None:
        """One line for `step`; seconds since the process began training are added."""
        if self._quiet:
            return
        line = {"step": step, **scalars, "seconds": round(time.perf_counter() - self.start, 3)}
        self._waiting.append(json.dumps(line).encode() + b"\n")
        self._flush()
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.log(step, scalars)
            except Exception as error:
                del self.trackers[name]
                warnings.warn(f"{name} failed and is left alone from here on: {error}", stacklevel=2)

    def _flush(self) -> None:
        """Write the lines that wait, as far as the disk takes them."""
        try:
            while self._waiting:
                self._file = self._file or self._open()
                # a line that was cut leaves a part in the file, which readers pass over
                whole = b"\n" + self._waiting[0] if self._torn else self._waiting[0]
                self._torn = self._file.write(whole) < len(whole)
                if self._torn:
                    raise OSError("there was no room for a whole line")
                del self._waiting[0]
            self._warned = False
        except OSError as error:
            if not self._warned:
                what = f"{self.path} cannot be written ({error}); its lines are kept until it can"
                warnings.warn(what, stacklevel=3)
            self._warned = True

    def show(self, **scalars: str) -> None:
        try:
            self.bar.set_postfix(scalars, refresh=False)
            self.bar.update()
        except OSError as error:  # stderr may be a file, on a disk that is full
            self.bar.disable = True
            warnings.warn(f"the progress bar ends here: {error}", stacklevel=2)


class Meter:
    """Samples per second, the share of time spent waiting for data, and the last losses.

    `unit` is the name of samples on the progress bar.
    """

    def __init__(self, unit: str = "img") -> None:
        self.unit = unit
        self.losses: list[float] = []
        self.last: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        self._began, self._waited, self._samples = time.perf_counter(), 0.0, 0

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """The next batch; the wait for it is counted."""
        mark = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - mark
        return batch

    def count(self, samples: int, loss: float) -> None:
        self._samples += samples
        self.losses = [*self.losses[-4:], loss]

    def rates(self) -> dict[str, float]:
        """The rates since the last `reset`."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        speed, wait = round(self._samples / elapsed, 2), round(self._waited / elapsed, 4)
        self.last = {"images_per_second": speed, "data_wait": wait}
        return self.last

    def shown(self) -> dict[str, str]:
        """The last rates as the progress bar shows them."""
        if not self.last:
            return {}
        return {f"{self.unit}/s": f"{self.last['images_per_second']:.0f}", "wait": f"{self.last['data_wait']:.0%}"}


def _started(folder: Path, asked: tuple[str, ...]) -> dict[str, Any]:
    """The trackers that `--track` asked for, by what was typed, without those that fail at their
    start."""
    if not asked:
        return {}
    from ssl_train.trackers import tracker

    made, run = {name: tracker(name) for name in asked}, json.loads((folder / "run.json").read_text("utf-8"))
    for name in asked:
        try:
            made[name].start(folder, run)
        except Exception as error:
            del made[name]
            warnings.warn(f"{name} could not be started and is left alone: {error}", stacklevel=4)
    return made
