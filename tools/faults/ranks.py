"""Kill ranks under the real `torchrun --max-restarts`, in new processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tools.faults.table import Row

from ssl_core.config import to_dict
from ssl_testing.state import differing, newest, whole_state
from ssl_testing.tiny import write_pictures
from ssl_testing.trial import Trial

STEPS_BETWEEN = 40


def ranks(trial: Trial, place: Path, count: int, seed: int, world: int) -> list[Row]:
    """Kill a random rank `count` times in a run; compare the run with an undisturbed one."""
    rng = np.random.default_rng(seed)
    trial = trial.replace(epochs=(count + 1) * STEPS_BETWEEN / 8)
    (place / "config.json").write_text(json.dumps(to_dict(trial.config)), "utf-8")
    data = write_pictures(place / "data", trial.config)
    _finish(_start(trial, place, data, "whole", world, 0))
    agent = _start(trial, place, data, "run", world, count + 3)
    died, restarted, victims = [], [], []
    for _ in range(count):
        seen = _steps(place / "run")
        _wait(lambda seen=seen: _steps(place / "run") > seen + rng.integers(5, 20), agent)
        living = _living(agent.pid)
        victim = int(rng.integers(world))
        victims.append(victim)
        os.kill(living[victim], signal.SIGKILL)
        start = time.monotonic()
        _wait(lambda living=living: not any(Path(f"/proc/{pid}").exists() for pid in living.values()), agent)
        died.append(time.monotonic() - start)
        seen = _steps(place / "run")
        _wait(lambda seen=seen: _steps(place / "run") > seen, agent)
        restarted.append(time.monotonic() - start)
    _finish(agent)
    exact = not differing(whole_state(newest(place / "run")), whole_state(newest(place / "whole")))
    kept = sum(seconds <= 20 for seconds in died) if exact else 0
    detail = (
        f"same bits: {exact}; all ranks gone after {max(died):.1f} s at most, trained on after {max(restarted):.0f} s; "
        f"victims {victims}"
    )
    promise = "the others end within 20 s, torchrun starts all again, the same bits"
    return [Row(f"a rank of {world} killed under torchrun, {trial.recipe.name}", promise, count, kept, detail)]


def _start(trial: Trial, place: Path, data: Path, out: str, world: int, restarts: int) -> subprocess.Popen[bytes]:
    torchrun = f"--nnodes=1 --nproc-per-node={world} --max-restarts={restarts}"
    torchrun += " --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0"
    train = f"{trial.recipe.package} train --config config.json --out {out}"
    train += " --device cpu --workers 0 --checkpoint-minutes 0 --log-every 1 --data"
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun.split(), "-m", *train.split(), str(data)]
    log = (place / f"{out}.log").open("wb")
    return subprocess.Popen(command, cwd=place, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _living(agent: int) -> dict[int, int]:
    """rank -> pid of the processes that torchrun started."""
    found = {}
    for task in Path(f"/proc/{agent}/task").iterdir():
        for pid in map(int, (task / "children").read_text("utf-8").split()):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            rank = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
            found.update({r: pid for r in rank})
    return found


def _steps(run: Path) -> int:
    """Steps that the run has logged; repeated steps count again."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait(until: object, agent: subprocess.Popen[bytes], limit: float = 180) -> None:
    deadline = time.monotonic() + limit
    while not until():  # type: ignore[operator]
        if agent.poll() is not None or time.monotonic() > deadline:
            agent.kill()
            raise RuntimeError(f"torchrun ended with {agent.returncode}, or nothing happened for {limit:g} s")
        time.sleep(0.05)


def _finish(agent: subprocess.Popen[bytes]) -> None:
    if agent.wait(600) != 0:
        raise RuntimeError(f"torchrun ended with {agent.returncode}; see its log")
