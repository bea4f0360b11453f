"""Kill runs, or tell them to stop, from outside at random moments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tools.faults.table import Row

from ssl_testing.state import differing, newest, whole_state
from ssl_testing.trial import Trial


def kills(trial: Trial, place: Path, count: int, seed: int) -> list[Row]:
    """`kill -9`, then the same command, until `count` kills have hit; compare each finished run."""
    hits, exact, finished, where, problems = _disturb(trial, place, count, seed, signal.SIGKILL)
    rounds = f"{finished} runs, of which {exact} ended with the bits of an undisturbed one; killed {_shown(where)}"
    kept = hits if exact == finished and not problems else 0
    promise = "the same command goes on to the same bits"
    return [
        Row(f"kill -9 at a random moment, {trial.recipe.name}", promise, hits, kept, "; ".join([rounds, *problems]))
    ]


def signals(trial: Trial, place: Path, count: int, seed: int) -> list[Row]:
    """SIGTERM at random moments: the run saves and exits with 75, and the same command resumes."""
    hits, exact, finished, where, problems = _disturb(trial, place, count, seed, signal.SIGTERM)
    rounds = f"{finished} runs, of which {exact} ended with the bits of an undisturbed one; told {_shown(where)}"
    kept = hits - len(problems) if exact == finished else 0
    promise = "saved at the interrupted step, exit code 75 (before training: ends at once)"
    return [
        Row(f"SIGTERM at a random moment, {trial.recipe.name}", promise, hits, kept, "; ".join([rounds, *problems]))
    ]


def _disturb(
    trial: Trial, place: Path, count: int, seed: int, number: signal.Signals
) -> tuple[int, int, int, Counter[str], list[str]]:
    """(hits, exact runs, finished runs, where the hits were, broken promises)."""
    rng, workers = np.random.default_rng(seed), 0
    start = time.monotonic()
    ended = trial.train(place / "whole")
    assert ended.code == 0, ended
    duration = time.monotonic() - start
    whole = whole_state(newest(place / "whole"))
    hits = exact = finished = 0
    where, problems = Counter[str](), []
    run = place / "run"
    while hits < count or run.exists():
        # fewer kills near the end, so that runs finish; with and without loader processes
        wait, workers = rng.uniform(0, 1.2 * duration), int(rng.integers(3))
        child = trial.start(run, warns=True, workers=workers, checkpoint_minutes=0 if number == signal.SIGKILL else 60)
        deadline = time.monotonic() + wait if hits < count else float("inf")
        while child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        hit = child.is_alive()
        if hit:
            os.kill(child.pid, number)
        ended = child.end()
        if ended.code == -number or ended.code == 75:
            hits += 1
            where[_place(run)] += 1
            if number == signal.SIGTERM and (lost := _lost(run)):
                problems.append(f"exit code {ended.code} and {lost} steps lost")
            continue
        if ended.code != 0:
            problems.append(f"exit code {ended.code}: {ended.error}")
        finished += 1
        hits += hit
        exact += not differing(whole_state(newest(run)), whole)
        shutil.rmtree(run)
    return hits, exact, finished, where, problems


def _place(run: Path) -> str:
    """Where a run was when it was hit."""
    steps = [int(path.name[5:]) for path in run.glob("checkpoints/step-*")]
    if list(run.glob("checkpoints/tmp-*")):
        return "in a save"
    if not steps:
        return "before the first checkpoint"
    return (
        "in the last third" if max(steps) >= 40 else "in the second third" if max(steps) >= 20 else "in the first third"
    )


def _lost(run: Path) -> int:
    """Steps that were logged but not saved."""
    log = run / "metrics.jsonl"
    logged = json.loads(log.read_text("utf-8").splitlines()[-1])["step"] if log.exists() and log.stat().st_size else 0
    saved = [int(path.name[5:]) for path in run.glob("checkpoints/step-*")]
    return logged - max(saved, default=0)


def _shown(where: Counter[str]) -> str:
    return ", ".join(f"{place} {number}" for place, number in sorted(where.items()))
