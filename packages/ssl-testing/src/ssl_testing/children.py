"""Run functions in forked children, to test what ends a process without starting a new Python."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo  # every optimiser imports it: seconds, once here instead of in each child
from tqdm import tqdm
from tqdm.auto import tqdm as AutoTqdm

LIMIT = 120.0
"""Seconds a child may take."""

# OpenMP's threads do not survive a fork, so a process that forks must not start any. One thread is
# also faster on busy cores.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Ended:
    """How a child ended: `code` is its exit code, or minus the signal that killed it."""

    code: int
    value: Any
    """what the function returned; None if it did not return"""
    error: str
    """the exception that ended it, as "RunError: message"; empty if there was none"""
    output: str
    """stdout and stderr"""

    def __str__(self) -> str:
        how = signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"
        return f"the child ended with {how}; it wrote:\n{self.output[:4000]}"


class Child:
    """`function` in a fork of this process, with its own output and `env` added to its environment.

    Signals have their default handlers, as in a new process. Warnings become errors if they do in
    the test; with `warns` they are written to the child's output instead.
    """

    def __init__(self, function: Callable[[], Any], *, warns: bool = False, **env: str) -> None:
        if torch.cuda.is_available():
            # autograd's GPU threads do not survive a fork
            raise RuntimeError("this suite forks, so it runs on the CPU: set CUDA_VISIBLE_DEVICES to nothing")
        fork = multiprocessing.get_context("fork")
        self._written = tempfile.TemporaryFile()
        self._result, sender = fork.Pipe(duplex=False)
        self._process = fork.Process(target=_run, args=(function, env, warns, self._written.fileno(), sender))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            self._process.start()
        sender.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def output(self) -> str:
        """What the child has written so far."""
        return os.pread(self._written.fileno(), os.fstat(self._written.fileno()).st_size, 0).decode(errors="replace")

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait until the child ends.

        Raises AssertionError with the child's stack if that takes longer than `limit` seconds.
        """
        deadline = time.monotonic() + limit
        # We poll, because `join` would wait for a pipe that loaders of a killed child hold open.
        while not self._result.poll(0.005) and self.is_alive() and time.monotonic() < deadline:
            pass
        value, error = None, ""
        try:
            if self._result.poll():
                value, error = self._result.recv()
        except EOFError:  # the child was killed before it could send anything
            pass
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        late = self.is_alive()
        if late:
            os.kill(self.pid, signal.SIGABRT)
            time.sleep(1)
            self.kill()
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        ended = Ended(code, value, error, self.output())
        self._result.close()
        self._written.close()
        assert not late, f"the child did not end within {limit:g} s. {ended}"
        return ended


def run(function: Callable[[], Any], *, warns: bool = False, **env: str) -> Ended:
    """Run `function` in a child and wait for it."""
    return Child(function, warns=warns, **env).end()


def run_ranks(world: int, function: Callable[[], Any], *, warns: bool = False) -> list[Ended]:
    """Run `function` in `world` children with the environment of `torchrun`, and wait for all."""
    with Torchrun() as agent:
        return [rank.end() for rank in agent.start(world, function, warns=warns)]


class Torchrun:
    """Stands in for `torchrun`: holds the store through which ranks meet, and can restart them.

    The store has its own process, because its thread would not exist in forks of this process. As
    under torchrun, restarted ranks use the same store and learn how often they were restarted.
    """

    def __init__(self) -> None:
        self._store = Child(_hold_store)
        self._starts: list[list[Child]] = []

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in (rank for ranks in self._starts for rank in ranks):
            rank.kill()
        self._store.kill()
        self._store.end()

    def start(self, world: int, function: Callable[[], Any], *, warns: bool = False) -> list[Child]:
        """Start `world` ranks; the children in order of their rank."""
        while not (port := re.search(r"port (\d+)\n", self._store.output())):
            assert self._store.is_alive(), self._store.output()
            time.sleep(0.002)
        env = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port[1],
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(len(self._starts)),
            "GLOO_SOCKET_IFNAME": next(name for _, name in socket.if_nameindex() if name.startswith("lo")),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        ranks = [Child(function, warns=warns, **env, RANK=str(i), LOCAL_RANK=str(i)) for i in range(world)]
        self._starts.append(ranks)
        return ranks


def _hold_store() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    print("port", store.port)
    time.sleep(3600)


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    print(warnings.formatwarning(message, category, filename, lineno), file=sys.stderr)


_SIGNALS = {signal.SIGINT: signal.default_int_handler}
_SIGNALS |= dict.fromkeys((signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP), signal.SIG_DFL)


def _run(function: Callable[[], Any], env: dict[str, str], warns: bool, written: int, sender: Any) -> None:
    os.environ.update(env)
    for number, handler in _SIGNALS.items():
        signal.signal(number, handler)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    faulthandler.enable(2)
    if warns:
        warnings.simplefilter("always")
        warnings.showwarning = _show  # otherwise pytest collects them
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    # A fork has a stale thread pool, which torch renews when a thread first asks for it. The
    # threads of a backward pass ask at the same time; that race aborts the process. So we ask here
    # first.
    torch.set_num_threads(torch.get_num_threads())
    # The inherited lock is shared with the parent, and a killed child would leave it locked.
    for bars in (tqdm, AutoTqdm):  # either may have made the lock that it uses
        bars.set_lock(threading.RLock())
    try:
        value = function()
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}"))
        raise
    sender.send((value, ""))
