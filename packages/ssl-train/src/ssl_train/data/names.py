"""Names of samples and of data: rows of a table, labels as numbers, digests, and near misses.
Imports no torch."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from ssl_core.errors import DataError
from ssl_train.data.files import open_file


def read_table(file: Path, *, strict: bool = True) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """(columns, (place, {column: value}) of each row that is not blank) of a .csv, .tsv or .jsonl
    file.

    Names of CSV columns come in lower case; the separator is a comma, a tab or a semicolon,
    whichever the header has most of. The columns of a .jsonl file are the keys of its first line.
    With `strict` the text must be UTF-8 and quotes must close; without it cells may hold any bytes,
    as file names do. Raises DataError, which names the file and the row; the rows raise it while
    they are read.
    """
    if file.suffix.lower() == ".jsonl":
        return list(next(_objects(file), ("", {}))[1]), _objects(file)
    rows = _csv_rows(file, strict)
    columns = [name.strip().lower() for name in next(rows)[1]]
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise DataError(f"{file}: the header has {', '.join(twice)} more than once: give each column its own name")
    return columns, _named(file, rows, columns)


def _csv_rows(file: Path, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """(row number as an editor counts, cells) of the header, [] if the file is empty, and of each
    row."""
    number = 1
    try:
        errors = "strict" if strict else "surrogateescape"
        with io.TextIOWrapper(open_file(file), newline="", encoding="utf-8-sig", errors=errors) as lines:
            choices = "\t,;" if file.suffix.lower() == ".tsv" else ",\t;"  # of equally many, the first
            separator = max(choices, key=lines.readline().count)
            lines.seek(0)
            rows = csv.reader(lines, delimiter=separator, strict=strict)
            yield 1, next(rows, [])
            for cells in rows:
                number = rows.line_num
                if cells:
                    yield number, cells
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}, row {number + 1}: {error}") from error


def _named(
    file: Path, rows: Iterator[tuple[int, list[str]]], columns: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, cells in rows:
        if len(cells) != len(columns):
            raise DataError(
                f"{file}, row {number}: {len(cells)} columns, the header has {len(columns)}: "
                'put a cell that holds a separator between "quotes"'
            )
        yield f"{file}, row {number}", dict(zip(columns, cells, strict=True))


def _objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line of a .jsonl file that is not blank."""
    try:
        with io.TextIOWrapper(open_file(file), encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise DataError(f"{file}, line {number}: {line[:60]!r} is no object")
                    yield f"{file}, line {number}", value
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error


def contained(path: str, where: str) -> str:
    """An absolute path as the user wrote it; a relative one without detours.

    Raises DataError if a relative path leaves the folder, or if it is no path.
    """
    if not path.strip() or "\0" in path:
        raise DataError(f"{where}: {path!r} is not a path")
    if os.path.isabs(path):
        return path
    clean = os.path.normpath(path)
    if clean == ".." or clean.startswith(".." + os.sep):
        raise DataError(f"{where}: {path!r} leaves the file's folder: write an absolute path")
    return clean


def number_labels(words: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """(labels int64 (n,), classes) of words; words that differ are different classes.

    Classes are sorted, by value if all words are integers ("9" before "10"; "01" and "1" stay two
    classes). "" and, among integers, "-1" mean no label. Returns (None, None) if no sample has a
    label.
    """
    there = set(words) - {""}
    try:
        # equal integers can be written in several ways: then the words decide
        classes = sorted(there - {"-1"}, key=lambda word: (int(word), word))
    except ValueError:
        classes = sorted(there)
    if not classes:
        return None, None
    number = {word: i for i, word in enumerate(classes)}
    return np.array([number.get(word, -1) for word in words], dtype=np.int64), classes


def findings(words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(int64 (n, c) of 0, 1 and -1 for not known, names) of cells that name several findings,
    "a|b". "" is not known at all; "|" has none of them."""
    named = [[part.strip() for part in word.split("|") if part.strip()] for word in words]
    names = sorted({part for parts in named for part in parts})
    place = {name: i for i, name in enumerate(names)}
    found = np.full((len(words), len(names)), -1, np.int64)
    for row, word, parts in zip(found, words, named, strict=True):
        row[:] = 0 if word else -1
        row[[place[part] for part in parts]] = 1
    return found, names


def marked(cells: Iterable[str], name: str) -> list[int]:
    """1 or 0 of each cell of a column that marks a finding; -1 for what is not known ("" or
    -1)."""
    values = {"1": 1, "0": 0, "": -1, "-1": -1}
    listed = [cell.strip().removesuffix(".0") for cell in cells]
    for row, cell in enumerate(listed, 2):
        if cell not in values:
            what = f"row {row} of column {name!r} holds {cell[:30]!r}: a column of a finding holds 1, 0, or nothing"
            raise DataError(f"{what} where it is not known")
    return [values[cell] for cell in listed]


def hf_options(data: str) -> tuple[str, dict[str, str]]:
    """(name, options) of "name?config=…&image=…&label=…&text=…", as it stands after "hf:".

    `config` is the data set's configuration; the others name columns, and "label=" means no labels.
    Raises DataError for another option.
    """
    name, _, query = data.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if query and (not options or not options.keys() <= {"config", "image", "label", "text"}):
        raise DataError(f"hf:{data}: write hf:name?config=…&image=…&label=…&text=…, each if needed")
    return name, options


def digest(*parts: bytes | np.ndarray | None) -> str:
    """Sixteen hex digits of the bytes and the lengths of `parts`."""
    total = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else part or b""
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()[:16]


def near(word: str, known: Iterable[str]) -> str:
    """A question that offers the names in `known` that resemble `word`; empty if none does."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
