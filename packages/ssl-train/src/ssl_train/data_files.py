"""Whether the files of a run's data are still those that the run began with.

The file `data_files.json` of a run folder holds the size and the modification time of each data
file and, with `--verify`, the sha256 of its content.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import warnings
from pathlib import Path
from typing import Any

from ssl_core.errors import DataError
from ssl_core.hub.weights_file import sha256, write_whole
from ssl_train.data.sources import table_of

RECORD = "data_files.json"


def files_of(source: Any, data: Any) -> dict[str, Path]:
    """Name -> path of the files that `source`, opened from `data`, reads; empty for built-in data,
    libraries and pictures in memory."""
    while not hasattr(source, "paths") and hasattr(source, "source"):
        source = source.source
    files = {name: Path(source.root, name) for name in getattr(source, "paths", ())}
    table = table_of(data)[0] if isinstance(data, str | os.PathLike) else None
    if table is not None and table.is_file():  # a table of paths, or an array
        files[table.name] = table
    return files


def check_files(folder: Path, files: dict[str, Path], *, begun: bool, verify: bool) -> None:
    """Compare `files` with the record of the run in `folder`; write the record if the run has not
    `begun`.

    Raises DataError, which names the files, if a size or a content has changed. A changed
    modification time alone is a warning, and only on the machine that wrote the record: a copy of
    the data on another machine has other times.
    """
    record = folder / RECORD
    now = {name: _facts(path, verify) for name, path in files.items()}
    if not begun or not record.exists():
        written = json.dumps({"host": platform.node(), "files": now})
        write_whole(record, lambda path: path.write_text(written, "utf-8"))
        return
    try:
        stored = json.loads(record.read_text("utf-8"))
        before, host = dict(stored["files"]), stored["host"]
        changed, touched, unknown = _compared(before, now)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{record} is damaged ({error}): give another --out, or delete the folder") from error
    if changed:
        raise DataError(
            f"{_listed(changed)} changed since the run in {folder} began. If it went on, its result would belong to "
            f"neither the old nor the new data. Put the old files back, or give another --out "
            f"(--init {folder} starts from its weights)"
        )
    if verify and unknown:
        what = f"the run in {folder} began without --verify: the content of {_listed(unknown)} cannot be compared"
        warnings.warn(what, stacklevel=2)
    if touched and host == platform.node():
        what = f"{_listed(touched)} may have changed since the run in {folder} began: the modification time differs."
        more = "If the content is another, the run does not end with the bits of an uninterrupted one"
        hint = "" if verify else " (a run that begins with --verify compares contents)"
        warnings.warn(f"{what} {more}{hint}", stacklevel=2)


def _compared(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Names of (changed, touched, not comparable) files: another size or content; another time and
    contents that were not compared; no content from before."""
    changed = [f"{name} (new)" for name in now.keys() - before.keys()]
    touched, unknown = [], []
    for name, (size, time, content) in before.items():
        other_size, other_time, other_content = now.get(name, (None, None, None))
        both = content is not None and other_content is not None
        if other_size is None and size is not None:
            changed.append(f"{name} (gone)")
        elif other_size != size:
            changed.append(f"{name} ({size} → {other_size} bytes)")
        elif both and content != other_content:
            changed.append(f"{name} (same size, other content)")
        elif other_time != time and not both:
            touched.append(name)
        if size is not None and not both:
            unknown.append(name)
    return sorted(changed), touched, unknown


def _facts(path: Path, verify: bool) -> tuple[int | None, int | None, str | None]:
    """(size in bytes, modification time in ns, sha256 if asked for); None for what cannot be
    read."""
    try:
        found = path.stat()
    except OSError:  # missing, a broken link: an unreadable sample, which the loader reports
        return None, None, None
    if not verify or not stat.S_ISREG(found.st_mode):  # reading a pipe would never end
        return found.st_size, found.st_mtime_ns, None
    try:
        return found.st_size, found.st_mtime_ns, sha256(path)
    except OSError:
        return found.st_size, found.st_mtime_ns, None


def _listed(names: list[str]) -> str:
    """How many files there are, and the names of the first five."""
    more = ", …" if len(names) > 5 else ""
    return f"{len(names)} data file{'s' * (len(names) != 1)} ({', '.join(names[:5])}{more})"
