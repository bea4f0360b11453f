"""This process, and the group of processes that `torchrun` starts."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ssl_core.distributed import is_main, is_on, world_size

T = TypeVar("T")


@contextmanager
def process_group(timeout_seconds: float = 1800) -> Iterator[None]:
    """Join the process group that `torchrun` describes in the environment.

    Does nothing without torchrun, or inside another such context.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or is_on():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(seconds=timeout_seconds)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store over a restart, and with it the addresses of the ranks that died
        # (pytorch#135712). On several machines this count is not the same for all: there
        # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps.
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        yield
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold, DDP included.

    DDP has to go before its group: if its reducer is the last to hold the group, it waits with
    Python's lock for the group's threads, which wait for that lock.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step, in this process and from now on.

    A step on a CPU frees and asks again for the same gigabyte, which would be handed back to the
    kernel and faulted in anew. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping, which is unmapped when freed


def cores() -> int:
    """Number of cores that this process may use."""
    # macOS and Windows do not say which cores are ours
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def barrier() -> None:
    if is_on():
        dist.barrier()


def broadcast_object(value: T) -> T:
    """Returns the main process's `value` on every process."""
    if not is_on():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def by_main(act: Callable[[], T]) -> T:
    """Call `act` on the main process alone. Every process returns its value or raises its error.

    All that depends on files of the run goes through here: other machines may see other files, and
    a process that decided by itself would leave the others waiting.
    """
    value: Any = None
    error: Exception | None = None
    if is_main():
        try:
            value = act()
        except Exception as raised:
            error = raised
    value, error = broadcast_object((value, error))
    if error is not None:
        raise error
    return value


def gather_objects(value: T) -> list[T]:
    """The value of every process, in the order of the ranks."""
    if not is_on():
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values
