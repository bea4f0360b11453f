"""Measure cases side by side: in alternating order, each in its own process.

Times are CPU seconds or wall-clock seconds. A round runs every case once, A B C in even rounds and
C B A in odd ones, so other load on the machine affects all of them. A ratio compares two times of
the same round. Every case keeps freed memory, as our training loop does: returning memory to the
system and fetching it again can cost large matrices more than their arithmetic. With --give-back no
case keeps it, as in an ordinary script.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ssl_train.processes import keep_freed_memory

PROJECTS = ["torch", "torchvision", "timm", "lightly", "transformers", "open_clip_torch"]
PROJECTS += ["faiss-cpu", "datasets", "tokenizers", "scikit-image", "pillow"]
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Work:
    """`run` does the work once. It is a generator: each name it yields ends a part of the time."""

    run: Callable[[], Iterator[str]]
    facts: dict[str, Any] = field(default_factory=dict)
    """further columns of the table"""


@dataclass(frozen=True)
class Case:
    """`build(*args)` makes the work in another process, so both are pickled.

    `needs` are the modules of other projects without which the case is left out.
    """

    name: str
    build: Callable[..., Work]
    args: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    threads: int
    clock: Literal["cpu", "wall"]
    rounds: int
    warmup: int
    json: Path | None
    keep: bool
    """whether the process keeps freed memory"""


class Time(NamedTuple):
    cpu: float
    wall: float


@dataclass
class Result:
    """What was measured of one case; `missing` names modules that are not installed."""

    case: str
    missing: list[str] = field(default_factory=list)
    rounds: list[dict[str, Time]] = field(default_factory=list)
    """seconds of each part"""
    extra: float = 0.0
    """MB that a round used at most, on top of what was used before it"""
    peak: float = 0.0
    """MB that the process used at most"""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        return list(self.rounds[0]) if self.rounds else []

    def seconds(self, clock: str, part: str | None = None) -> list[float]:
        """Seconds of a part, or of all of them together, in each round."""
        return [sum(getattr(t, clock) for name, t in parts.items() if part in (None, name)) for parts in self.rounds]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags that every subject has."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--threads", type=int, default=1, help="of torch")
    clock = "cpu: seconds of the process, for a machine that others use too"
    flags.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help=clock)
    flags.add_argument("--rounds", type=int, default=7)
    flags.add_argument("--warmup", type=int, default=1, help="rounds before those that count")
    flags.add_argument("--give-back", action="store_true", help="freed memory goes back to the system")
    flags.add_argument("--json", type=Path, help="file to which each table is appended as a line of JSON")
    return flags


def settings(args: argparse.Namespace) -> Settings:
    """The shared flags; they are applied to this process too."""
    chosen = Settings(args.threads, args.clock, args.rounds, args.warmup, args.json, not args.give_back)
    _prepare(chosen)
    return chosen


def _prepare(chosen: Settings) -> None:
    torch.set_num_threads(chosen.threads)
    if chosen.keep:
        keep_freed_memory()


def race(cases: Sequence[Case], chosen: Settings, *, isolate: bool = True) -> list[Result]:
    """Run all cases in turn, `warmup` + `rounds` times.

    Without `isolate` they share this process: for kernels, where starting processes would take
    longer than measuring. Raises RuntimeError with the traceback of a case that failed, or with the
    exit code of its process.
    """
    results = [Result(case.name, missing=[name for name in case.needs if find_spec(name) is None]) for case in cases]
    with ExitStack() as stack:
        runners = []
        for case, result in zip(cases, results, strict=True):
            if not result.missing:
                result.facts, run = stack.enter_context(_process(case, chosen) if isolate else _here(case))
                runners.append((result, run))
        for i in range(chosen.warmup + chosen.rounds):
            for result, run in runners if i % 2 == 0 else reversed(runners):
                times, extra, peak = run()
                result.extra, result.peak = max(result.extra, extra), max(result.peak, peak)
                if i >= chosen.warmup:
                    result.rounds.append(times)
    return results


def same(results: Sequence[Result], fact: str = "loss", *, within: float) -> None:
    """Raises SystemExit when the contenders' `fact` differs by more than `within`.

    Then they do not do the same work.
    """
    values = {result.case: result.facts[fact] for result in results if not result.missing}
    if max(values.values()) - min(values.values()) > within:
        raise SystemExit(f"the contenders do not compute the same {fact}: {values}")


@contextmanager
def _here(case: Case) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    work = case.build(*case.args)
    yield work.facts, lambda: _timed(work)


@contextmanager
def _process(case: Case, chosen: Settings) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, case, chosen), daemon=True)
    process.start()
    theirs.close()

    def answer() -> Any:
        try:
            ok, value = ours.recv()
        except EOFError as error:
            process.join()
            raise RuntimeError(f"{case.name}: its process ended with exit code {process.exitcode}") from error
        if not ok:
            raise RuntimeError(f"{case.name}:\n{value}")
        return value

    def run() -> Any:
        ours.send(True)
        return answer()

    try:
        yield answer(), run
    finally:
        ours.close()
        process.join()


def _serve(pipe: Any, case: Case, chosen: Settings) -> None:
    """In the other process: build, then run a round per message until the pipe closes."""
    _prepare(chosen)
    try:
        work = case.build(*case.args)
        gc.collect()
        pipe.send((True, work.facts))
        while pipe.recv():
            pipe.send((True, _timed(work)))
    except EOFError:
        return
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _timed(work: Work) -> tuple[dict[str, Time], float, float]:
    """(seconds of each part, MB on top of what was used before, peak MB) of one run."""
    before = _restart_peak()
    times: dict[str, Time] = {}
    cpu, wall = time.process_time(), time.perf_counter()
    for part in work.run():
        old, now = times.get(part, Time(0, 0)), Time(time.process_time(), time.perf_counter())
        times[part] = Time(old.cpu + now.cpu - cpu, old.wall + now.wall - wall)
        cpu, wall = time.process_time(), time.perf_counter()
    peak = _status("VmHWM")
    return times, peak - before, peak


def _restart_peak() -> float:
    """Reset the kernel's record of the peak; the MB now resident, or 0 without /proc."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
    return _status("VmRSS")


def _status(key: str) -> float:
    status = Path("/proc/self/status")
    found = re.search(rf"^{key}:\s+(\d+) kB", status.read_text("utf-8"), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def matmul_rate(dtype: torch.dtype, clock: str) -> float:
    """FLOP per second of a large matrix product, with the same threads and clock."""
    size, best = 2048, float("inf")
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    now = time.process_time if clock == "cpu" else time.perf_counter
    for _ in range(6):
        start = now()
        torch.mm(a, b)
        best = min(best, now() - start)
    return 2 * size**3 / best


def ratios(result: Result, first: Result, clock: str, part: str | None = None) -> str:
    """Time divided by that of the first case in the same round: median and range."""
    pairs = zip(result.seconds(clock, part), first.seconds(clock, part), strict=True)
    values = [mine / base for mine, base in pairs]
    return f"{statistics.median(values):.2f} [{min(values):.2f}–{max(values):.2f}]"


def duration(seconds: float) -> str:
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def table(results: Sequence[Result], chosen: Settings) -> str:
    """Markdown: per case the medians, their ratios to the first case, memory and facts."""
    first = results[0]
    parts: list[str | None] = [*first.parts] if len(first.parts) == 1 else [*first.parts, None]
    facts = list(dict.fromkeys(key for result in results for key in result.facts))
    head = ["case"]
    for part in parts:
        head += [part or "all", "ratio"]
    rows = []
    for result in results:
        if result.missing:
            rows.append([result.case, f"not installed: {', '.join(result.missing)}"])
            continue
        row = [result.case]
        for part in parts:
            median = statistics.median(result.seconds(chosen.clock, part))
            row += [duration(median), ratios(result, first, chosen.clock, part)]
        row += [f"{result.extra:,.0f}", f"{result.peak:,.0f}"]
        rows.append([*row, *(str(result.facts.get(fact, "")) for fact in facts)])
    return markdown([*head, "extra MB", "peak MB", *facts], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that is also readable as text; short rows are padded."""
    lines = [list(head), *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in padded]
    return "\n".join([text[0], "| " + " | ".join("-" * width for width in widths) + " |", *text[1:]])


def report(title: str, results: Sequence[Result], chosen: Settings, text: str | None = None) -> None:
    """Print a table below its title and the machine; append all measurements to the JSON file."""
    machine = hardware(chosen)
    print(f"\n### {title}\n\n{machine}\n\n{text or table(results, chosen)}", flush=True)
    if chosen.json:
        rows = [asdict(result) | {"rounds": [dict(r) for r in result.rounds]} for result in results]
        line = {"title": title, "machine": machine, "settings": asdict(chosen) | {"json": None}, "rows": rows}
        with chosen.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


def hardware(chosen: Settings) -> str:
    """One line: processor and its features, settings, versions, and the load of the machine."""
    info = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    name, family, model = (_cpuinfo(info, key) for key in ("model name", "cpu family", "model"))
    flags = [flag for flag in FLAGS if flag in _cpuinfo(info, "flags").split()]
    memory = "" if chosen.keep else ", memory given back"
    unit = "CPU seconds" if chosen.clock == "cpu" else "wall seconds"
    versions = [f"{project} {found}" for project in PROJECTS if (found := _version(project))]
    return (
        f"{name or platform.processor()} (family {family}, model {model}), {os.cpu_count()} cores, {' '.join(flags)}; "
        f"{chosen.threads} thread(s), {unit}, {chosen.rounds} rounds{memory}; python {platform.python_version()}, "
        f"{', '.join(versions)}; load {os.getloadavg()[0]:.1f}"
    )


def _cpuinfo(info: str, key: str) -> str:
    found = re.search(rf"^{key}\s*: (.*)$", info, re.MULTILINE)
    return found[1] if found else ""


def _version(project: str) -> str | None:
    try:
        return version(project)
    except PackageNotFoundError:
        return None
