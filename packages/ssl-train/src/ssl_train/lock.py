"""A folder for one process at a time. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def locked(folder: Path, refusal: Exception) -> Iterator[None]:
    """Hold `folder/.lock`; the file stays. Raises `refusal` at once if another process holds it."""
    from filelock import FileLock, Timeout  # brings asyncio

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise refusal from error
    try:
        yield
    finally:
        lock.release()
