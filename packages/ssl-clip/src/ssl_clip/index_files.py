"""What an index of images holds on disk.

    my.index/index.json        which model, which folder, and the number in the names below
    my.index/vectors-3.f16     a row of the embedding's width for each image, appended
    my.index/files-3.jsonl     a line for each file seen: path, size, time, row or what is wrong
    my.index/lists-3.faiss     faiss's inverted lists, where there are many images
    my.index/.lock             held while the index is updated

Each line ends with a checksum of itself and of its row. index.json holds one of itself and of the
lists, and the size of the finished list of files. So a damaged file is an error, and never a wrong
result.

Vectors are written before the lines that name them. A killed update leaves at most a torn last
line behind that size, and rows without a line; the next update cuts both off. Rows of files that
changed or are gone stay until they are a quarter of all. Then both files are written anew under the
next number, and index.json is replaced.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.errors import InputError
from ssl_core.hub.weights_file import sha256, sum_of, write_whole
from ssl_train import lock

FORMAT = 2
FIELDS: dict[str, Any] = {
    "format": int, "model": str, "dim": int, "root": str, "weights": str | None, "number": int, "bytes": int,
    "lists": str | None,
}  # fmt: skip
"""What index.json holds; `bytes` is the size of the list of files after the last finished update,
`lists` the sha256 of faiss's file."""
LINE = re.compile(r"(\{.*\}) ([0-9a-f]{8})")
STALE = 0.25
"""Share of rows without a file at which the files are written anew."""

Seen = tuple[str, list[int], np.ndarray | None, str]
"""(path, [bytes, time in ns], fp16 vector or None, what is wrong) of a file that was looked at."""


class IndexMismatch(InputError, ValueError):
    """An index and a model, or an index and its own files, that do not belong together."""


def read_meta(folder: Path) -> dict[str, Any]:
    """index.json of an index. Raises IndexMismatch when it is missing or not as it was written."""
    file = folder / "index.json"
    again = f"delete {folder} and make it again with `ssl-clip index FOLDER --out {folder}`"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise IndexMismatch(f"{folder} is no index: make one with `ssl-clip index FOLDER --out {folder}`") from error
    except ValueError as error:
        raise IndexMismatch(f"{file} is damaged: {again}") from error
    try:
        meta = json.loads(text)
        written = meta.pop("sha256")
        if written != sum_of(meta) or not all(isinstance(meta[name], kind) for name, kind in FIELDS.items()):
            raise ValueError("it differs from what was written")
        if meta["format"] != FORMAT:
            raise ValueError(f"it is of format {meta['format']}, this version reads {FORMAT}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexMismatch(f"{file} cannot be used ({error}): {again}") from error
    return meta


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Replace index.json whole."""
    text = json.dumps({**meta, "sha256": sum_of(meta)}, indent=1)
    write_whole(folder / "index.json", lambda path: path.write_text(text, encoding="utf-8"))


def locked(folder: Path) -> AbstractContextManager[None]:
    """The index in `folder` for this process alone. Raises IndexMismatch if another updates it."""
    what = f"{folder} is being updated by another process: wait for it, or give another --out"
    return lock.locked(folder, IndexMismatch(what))


def _line(entry: dict[str, Any], vector: np.ndarray | None) -> str:
    """A line of the files' list: JSON, and the checksum of it and of its vector."""
    text = json.dumps(entry)
    total = zlib.crc32(b"" if vector is None else vector.tobytes(), zlib.crc32(text.encode()))
    return f"{text} {total:08x}\n"


def _read(line: bytes) -> tuple[dict[str, Any], bytes, int] | None:
    """(entry, its JSON, its checksum) of a line; None if it is no whole line."""
    match = LINE.fullmatch(line.decode("utf-8", errors="replace"))
    if match is None:
        return None
    try:
        entry = json.loads(match[1])
    except ValueError:
        return None
    row = entry.get("row", 0)
    if not isinstance(entry.get("path"), str) or not isinstance(row, int) or row < 0:
        return None
    return entry, match[1].encode(), int(match[2], 16)


class IndexFiles:
    """The files of the index in `folder`, and what they say.

    `entries` has every file below the indexed folder by its path: its "stamp", bytes and time, and
    either its "row" of the vectors or the "error" that kept it from being read. `rows` counts the
    rows.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.meta = folder, meta
        self._name()
        self._load()

    def _name(self) -> None:
        """The paths of the files with the current number."""
        names = ("vectors-{}.f16", "files-{}.jsonl", "lists-{}.faiss")
        self.vectors, self.lines, self.lists = (self.folder / name.format(self.meta["number"]) for name in names)

    def _load(self) -> None:
        """Read the lines, but for a torn last one. Rows that no line names do not count."""
        self.entries: dict[str, dict[str, Any]] = {}
        self.rows = 0
        self._searchable: tuple[dict[int, str], np.ndarray] | None = None
        content, finished = self.lines.read_bytes() if self.lines.is_file() else b"", self.meta["bytes"]
        if len(content) < finished or content[:finished][-1:] not in (b"", b"\n"):
            raise IndexMismatch(f"{self.lines} is missing or cut off: delete {self.folder} and index again")
        *lines, _ = content.split(b"\n")  # the last piece is empty, or torn by a kill
        width = 2 * self.meta["dim"]
        vectors = np.memmap(self.vectors, dtype=np.uint8, mode="r") if self._stored else np.empty(0, np.uint8)
        for number, line in enumerate(lines, 1):
            read = _read(line)
            if read is None:
                raise IndexMismatch(f"{self.lines}, line {number} is damaged: delete {self.folder} and index again")
            entry, text, written = read
            row = entry.get("row")
            start = 0 if row is None else row * width
            vector = b"" if row is None else vectors[start : start + width].tobytes()
            # There may be more vectors than lines name, but not fewer.
            if row is not None and len(vector) < width:
                raise IndexMismatch(f"{self.vectors} is cut off: delete {self.folder} and index again")
            if zlib.crc32(vector, zlib.crc32(text)) != written:
                what = f"{self.lines}, line {number}, or its vector is damaged"
                raise IndexMismatch(f"{what}: delete {self.folder} and index again")
            self._take(entry)
            self.rows = max(self.rows, 0 if row is None else row + 1)

    @property
    def _stored(self) -> int:
        """Bytes of the vectors' file."""
        return self.vectors.stat().st_size if self.vectors.is_file() else 0

    @property
    def _bytes(self) -> int:
        """Size of the vectors that have a line."""
        return 2 * self.meta["dim"] * self.rows

    def __len__(self) -> int:
        return sum("row" in entry for entry in self.entries.values())

    def searchable(self) -> tuple[dict[int, str], np.ndarray]:
        """({row: path} of every image that can be searched, their rows in order)."""
        if self._searchable is None:
            paths = {entry["row"]: path for path, entry in self.entries.items() if "row" in entry}
            self._searchable = paths, np.array(sorted(paths), dtype=np.int64)
        return self._searchable

    def matrix(self) -> np.ndarray:
        """(rows, d) fp16, mapped from the disk."""
        return np.memmap(self.vectors, dtype=np.float16, mode="r", shape=(self.rows, self.meta["dim"]))

    def append(self, gone: Iterable[str], batches: Iterable[list[Seen]]) -> None:
        """Note the files that are gone, and those that were looked at, a batch at a time."""
        self._cut_torn()
        with self.lines.open("a", encoding="utf-8") as lines, self.vectors.open("ab") as vectors:
            for path in gone:
                self._note(lines, {"path": path, "gone": True})
            for batch in batches:
                for path, stamp, vector, error in batch:
                    if vector is None:  # unreadable: it is noted, so that it is not tried again
                        self._note(lines, {"path": path, "stamp": stamp, "error": error})
                        continue
                    vectors.write(vector.tobytes())
                    self._note(lines, {"path": path, "stamp": stamp, "row": self.rows}, vector)
                    self.rows += 1
                vectors.flush()  # rows before the lines that name them
                lines.flush()
            for stream in (vectors, lines):
                os.fsync(stream.fileno())

    def _cut_torn(self) -> None:
        """Cut off what a killed update left: half a line, and vectors without one."""
        if self.lines.is_file():
            os.truncate(self.lines, self.lines.read_bytes().rfind(b"\n") + 1)
        if self.vectors.is_file():
            os.truncate(self.vectors, self._bytes)

    def _note(self, lines: Any, entry: dict[str, Any], vector: np.ndarray | None = None) -> None:
        lines.write(_line(entry, vector))
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        self._searchable = None
        if entry.get("gone"):
            self.entries.pop(entry["path"], None)
        else:
            self.entries[entry["path"]] = {key: value for key, value in entry.items() if key != "path"}

    def lists_are_whole(self) -> bool:
        """Whether faiss's lists are there as they were written."""
        return self.lists.is_file() and self.meta["lists"] == sha256(self.lists)

    def note_finished(self) -> None:
        """Note that the list of files is whole, and the sum of faiss's lists if there are any."""
        size = self.lines.stat().st_size if self.lines.is_file() else 0
        self.meta = {**self.meta, "bytes": size, "lists": sha256(self.lists) if self.lists.is_file() else None}
        write_meta(self.folder, self.meta)

    def is_stale(self) -> bool:
        """Whether so many rows belong to no file any more that the files should be written anew."""
        return self.rows > 0 and 1 - len(self) / self.rows > STALE

    def rewrite(self) -> None:
        """Write both files without rows that belong to no file, under the next number."""
        # A kill before index.json is replaced leaves the old number, whose files are whole.
        old = (self.vectors, self.lines, self.lists)
        (_, kept), matrix = self.searchable(), self.matrix()
        # Row -> its place among those that are kept.
        position = {row: i for i, row in enumerate(kept.tolist())}
        copied = matrix[kept]
        self.meta = {**self.meta, "number": self.meta["number"] + 1, "bytes": 0, "lists": None}
        self._name()
        copied.tofile(self.vectors)
        with self.lines.open("w", encoding="utf-8") as lines:
            for path, entry in self.entries.items():
                moved = {"row": position[entry["row"]]} if "row" in entry else {}
                vector = copied[moved["row"]] if moved else None
                lines.write(_line({"path": path, **entry, **moved}, vector))
        write_meta(self.folder, self.meta)
        self._load()
        for path in old:
            path.unlink(missing_ok=True)
