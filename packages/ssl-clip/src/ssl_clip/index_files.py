"""What an index of images holds on disk.

    my.index/index.json        which model, which folder, and the number in the names below
    my.index/vectors-3.f16     a row of the embedding's width for each image, appended
    my.index/files-3.jsonl     a line for each file seen: path, size, time, row or what is wrong
    my.index/lists-3.faiss     faiss's inverted lists, where there are many images

Vectors are written before the lines that name them. A killed update leaves at most a torn last
line, and rows without a line; the next update cuts both off. Rows of files that changed or are gone
stay until they are a quarter of all. Then both files are written anew under the next number, and
index.json is replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.errors import InputError
from ssl_core.hub.weights_file import write_whole

FORMAT = 1
STALE = 0.25
"""Share of rows without a file at which the files are written anew."""

Seen = tuple[str, list[int], np.ndarray | None, str]
"""(path, [bytes, time in ns], fp16 vector or None, what is wrong) of a file that was looked at."""


class IndexMismatch(InputError, ValueError):
    """An index and a model, or an index and its own files, that do not belong together."""


def read_meta(folder: Path) -> dict[str, Any]:
    """index.json of an index. Raises IndexMismatch when it is missing or holds something else."""
    try:
        meta = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or not {"model", "dim", "root", "weights", "number"} <= meta.keys():
            raise ValueError(f"format {meta['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexMismatch(f"{folder} is no index: make one with `ssl-clip index FOLDER --out {folder}`") from error
    return meta


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    write_whole(folder / "index.json", lambda path: path.write_text(json.dumps(meta, indent=1), encoding="utf-8"))


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
        lines = self.lines.read_text(encoding="utf-8").split("\n") if self.lines.is_file() else [""]
        for number, line in enumerate(lines[:-1], 1):  # the last one is empty, or torn by a kill
            try:
                entry = json.loads(line)
                self._take(entry)
                self.rows = max(self.rows, entry.get("row", -1) + 1)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise IndexMismatch(f"{self.lines}, line {number} is damaged: delete {self.folder}") from error
        # There may be more vectors than lines name, but not fewer.
        size = self.vectors.stat().st_size if self.vectors.is_file() else 0
        if size < self._bytes:
            raise IndexMismatch(f"{self.vectors} is cut off: delete {self.folder} and index again")

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
                    self._note(lines, {"path": path, "stamp": stamp, "row": self.rows})
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

    def _note(self, lines: Any, entry: dict[str, Any]) -> None:
        lines.write(json.dumps(entry) + "\n")
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        self._searchable = None
        if entry.get("gone"):
            self.entries.pop(entry["path"], None)
        else:
            self.entries[entry["path"]] = {key: value for key, value in entry.items() if key != "path"}

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
        self.meta = {**self.meta, "number": self.meta["number"] + 1}
        self._name()
        copied.tofile(self.vectors)
        with self.lines.open("w", encoding="utf-8") as lines:
            for path, entry in self.entries.items():
                moved = {"row": position[entry["row"]]} if "row" in entry else {}
                lines.write(json.dumps({"path": path, **entry, **moved}) + "\n")
        write_meta(self.folder, self.meta)
        self._load()
        for path in old:
            path.unlink(missing_ok=True)
