"""Texts in files: finding them, cutting them into pieces, reading them. Imports no torch.

A file is a text, or a table with a text in each row: .csv, .tsv, .jsonl and .parquet.
"""

from __future__ import annotations

import csv
import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ssl_core.errors import DataError, InputError
from ssl_train.data.files import open_file, walk
from ssl_train.data.names import hf_options, near

SEPARATOR = "<|endoftext|>"
"""Separates documents inside one text file."""
ROW = 1000
"""Bytes that a row of a `datasets` split counts as: only reading it tells its length."""
MADE = (("run.json", "data_files.json"), ("plan.json", "done.jsonl"))
"""Pairs of files that a folder has if `train` or `prepare` made it."""
CSV, LINES, PARQUET = (".csv", ".tsv"), ".jsonl", ".parquet"
STRINGS = ("string", "large_string", "string_view")
"""Types of a column of texts in a `datasets` split."""
csv.field_size_limit(2**31 - 1)  # for all readers of this process: Python's 131,072 are shorter than a book


class BadText(DataError):
    """A file that is not text. The message names the file and the reason."""


@dataclass(frozen=True)
class Piece:
    """Bytes (rows of a `datasets` split) start … end - 1; `ends` if a document ends with them."""

    path: str
    start: int
    end: int
    ends: bool = True
    split: str | None = None
    """the split of a data set of the `datasets` library, whose name (or .parquet file) is `path`"""
    column: str = "text"
    """of a table: the one that holds the texts"""

    @property
    def size(self) -> int:
        """Bytes; of rows an estimate."""
        return (self.end - self.start) * (ROW if self.split else 1)


def list_files(folder: Path) -> list[Path]:
    """Files below `folder`, sorted, as `walk` finds them, but not those of runs and of prepared
    text. Raises InputError if there is none."""
    names = walk(folder)
    there, ours = set(names), []
    for one, other in MADE:
        places = [name.removesuffix(one) for name in names if name.endswith(f"/{one}")]
        ours += [place for place in places if place + other in there]
    found = [folder / name for name in names if not name.startswith(tuple(ours))]
    if not found:
        raise InputError(f"there is no file in {folder}")
    return found


def kind(path: str | Path) -> str:
    """The ending of a file's name in lower case, which says how it is read."""
    return Path(path).suffix.lower()


def named_column(data: str) -> tuple[str, str | None]:
    """(name, the column of texts that stands behind it, if any) of "posts.csv?text=body"."""
    name, marked, column = data.partition("?text=")
    return name, column if marked else None


def cut(path: Path, size: int, start: int = 0, end: int | None = None, column: str | None = None) -> list[Piece]:
    """Pieces of about `size` bytes of a file, cut at ends of lines; of rows at ends of rows.

    A separator stays with the document that it ends. `column` is the one of a table that holds the
    texts, see `text_column`. Raises InputError.
    """
    end, column = path.stat().st_size if end is None else end, _column_of(path, column)
    rows = _row_ends(path) if kind(path) in CSV else []
    start = max([start, *rows[:1]])  # the header is no row
    pieces = []
    with open_file(path) as stream:
        while start < end:
            # a rest of up to half a piece goes with the last one
            stop = end
            if end - start > size * 3 // 2:
                at = bisect_left(rows, start + size)
                stop = min(end, rows[at] if at < len(rows) else end if rows else _past_separator(stream, start + size))
            pieces.append(Piece(str(path), start, stop, ends=stop == end, column=column))
            start = stop
    return pieces


def border(path: Path, offset: int) -> int:
    """Where the held-out end of a file begins: behind the line or row that holds byte `offset`, if
    another follows; else before the last row of a table, or at a space of a text's last line."""
    if kind(path) not in CSV:
        with open_file(path) as stream:
            found = line_end(stream, offset)
            if stream.read(1):
                return found
            stream.seek(offset)
            space = stream.read().rstrip().find(b" ")
        if kind(path) != LINES:  # half a line of JSON is nothing
            return found if space < 0 else offset + space
    ends = _row_ends(path)
    return ends[min(max(min(bisect_left(ends, offset), len(ends) - 2), 1), len(ends) - 1)]


def line_end(stream: BinaryIO, offset: int) -> int:
    """The end of the line that holds byte `offset`."""
    stream.seek(offset)
    stream.readline()
    return stream.tell()


def _past_separator(stream: BinaryIO, offset: int) -> int:
    """The end of the line that holds byte `offset`, or of the next one that is not blank if that
    begins with a separator."""
    start, line = line_end(stream, offset), b"\n"
    while line and not line.strip():
        line = stream.readline()
    return stream.tell() if line.startswith(SEPARATOR.encode()) else start


def decode(data: bytes, path: str, start: int = 0) -> str:
    """UTF-8 bytes as text; they begin at byte `start` of the file.

    Raises BadText for binary data and for other encodings.
    """
    if (zero := data.find(0)) >= 0:
        raise BadText(f"{path} is binary: byte {start + zero} is zero")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        raise BadText(
            f"{path} is not UTF-8: byte {start + error.start} is {wrong:#04x}. "
            f"Convert it, with `iconv -f latin1 -t utf8` say"
        ) from error


def read_piece(piece: Piece, bad: list[tuple[int, str]]) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether a document ends with it).

    A line or row that cannot be read is left out; `bad` gets the byte of the file where the line
    begins, or the number of the row, and the reason. Raises BadText for a binary file.
    """
    if piece.split is not None:
        rows = open_hf(piece.path)[piece.split][piece.start : piece.end]["text"]
        for number, row in enumerate(rows, piece.start):
            if isinstance(row, str):
                yield row, True
            else:
                bad.append((number, f"its text is {type(row).__name__}"))
        return
    if kind(piece.path) in CSV:
        yield from ((document, True) for document in _cells(piece, bad))
        return
    with open_file(piece.path) as stream:
        stream.seek(piece.start)
        data = stream.read(piece.size)
    if kind(piece.path) == LINES:
        yield from ((document, True) for document in _documents(data, piece, bad))
        return
    # all but the last part end with a separator; the last ends with the piece
    *whole, rest = _text(data, piece, bad).split(SEPARATOR)
    yield from ((part.strip("\n"), True) for part in whole if part.strip())
    # blank lines count between two pieces of a document
    if rest.strip() or (rest and not whole and piece.start):
        yield rest if not whole else rest.lstrip("\n"), piece.ends


def _text(data: bytes, piece: Piece, bad: list[tuple[int, str]]) -> str:
    """The text of a piece without the lines that cannot be read."""
    try:
        return decode(data, piece.path, piece.start)
    except BadText as error:
        failure = error
    kept, lost, size = [], [], 0
    for at, line in _lines(BytesIO(data), piece.start):
        try:
            kept.append(decode(line, piece.path, at))
        except BadText as error:
            lost.append((at, str(error)))
            size += len(line)
            # the document ends here all the same
            kept += [SEPARATOR] if SEPARATOR.encode() in line else []
    # a picture has a few lines that could be text
    if b"\0" in data and size > len(data) / 2:
        raise failure
    bad += lost
    return "".join(kept)


def _documents(data: bytes, piece: Piece, bad: list[tuple[int, str]]) -> Iterator[str]:
    """The text of every line of JSON that has one."""
    for at, line in _lines(BytesIO(data), piece.start):
        try:
            text = decode(line, piece.path, at)
            if not text.strip():
                continue
            document = json.loads(text)[piece.column]
            if not isinstance(document, str):
                raise BadText(f"its `{piece.column}` is {type(document).__name__}, not a string")
            document.encode()  # JSON may hold half of a surrogate pair, which is no character
        except BadText as error:
            bad.append((at, str(error)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            bad.append((at, f"it is no object with a `{piece.column}` ({error})"))
        else:
            yield document


def _lines(stream: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their line feeds, and the byte of the file where each begins."""
    for line in stream:
        yield start, line
        start += len(line)


# ---------------------------------------------------------------- tables


def text_column(columns: Sequence[str], where: str, given: str | None = None) -> str:
    """The column that the user gave, else `text`, else the only one of `columns`.

    Raises DataError, which lists them, if there is no such column or several could be meant.
    """
    if (given or "text") in columns:
        return given or "text"
    if given is None and len(columns) == 1:
        return columns[0]
    listed = ", ".join(columns) or "none"
    if given is not None:
        raise DataError(f"{where} has no column of texts {given!r}; it has {listed}.{near(given, columns)}")
    hint = f"name the one with the texts, {where}?text=COLUMN"
    raise DataError(f"{where} has no column `text`; it has {listed}: {hint}")


def _column_of(path: Path, given: str | None) -> str:
    """The column of a table that holds its texts; for other files it means nothing."""
    columns: Sequence[str] = ()
    if kind(path) in CSV:
        columns, given = _header(path), given and given.lower()
    elif kind(path) == LINES:
        columns = _first_keys(path)
        if not columns:  # its lines will be reported
            return given or "text"
    else:
        return "text"
    return text_column(columns, str(path), given)


def _first_keys(path: Path) -> list[str]:
    """The keys of the object in the first line of a .jsonl file; none if it holds no object."""
    with open_file(path) as stream:
        try:
            return list(json.loads(stream.readline()).keys())
        except (ValueError, AttributeError, RecursionError):
            return []


def _csv(path: str | Path, start: int = 0, end: int | None = None) -> Iterator[tuple[int, list[str], int]]:
    """(its first byte, cells, the byte behind it) of each row in bytes start … end - 1 of a .csv
    file.

    What is no UTF-8 comes as surrogates. Raises BadText for quotes that do not close.
    """
    with open_file(path) as stream:
        # as `ssl_train.data.names.read_table`: the separator that the header has most of
        choices = "\t,;" if kind(path) == ".tsv" else ",\t;"
        separator = max(choices, key=decode(stream.readline(), str(path)).count)
        stream.seek(start)
        behind = start

        def lines() -> Iterator[str]:
            nonlocal behind
            for line in stream:
                text = line.removeprefix(b"\xef\xbb\xbf") if not behind else line
                behind += len(line)
                yield text.decode("utf-8", "surrogateescape")

        # the reader takes a line only when a row needs it, so that `behind` is the end of the row
        rows, begin = csv.reader(lines(), delimiter=separator, strict=True), start
        try:
            for cells in rows:
                yield begin, cells, behind
                begin = behind
                if begin == end:
                    return
        except csv.Error as error:
            raise BadText(f"{path}, row {rows.line_num}: {error}. Mend its quotes") from error


def _header(path: str | Path) -> list[str]:
    return [name.strip().lower() for name in next(_csv(path), (0, [], 0))[1]]


def _row_ends(path: Path) -> list[int]:
    """Where the header (of a .csv file) and each row of a table end, but for blank ones."""
    if kind(path) in CSV:
        return [end for _, cells, end in _csv(path) if cells]
    with open_file(path) as stream:
        return [0, *(start + len(line) for start, line in _lines(stream, 0) if line.strip())]


def _cells(piece: Piece, bad: list[tuple[int, str]]) -> Iterator[str]:
    """The texts of the rows of a .csv file."""
    columns = _header(piece.path)
    place = columns.index(piece.column)
    for at, cells, _ in _csv(piece.path, piece.start, piece.end):
        if len(cells) != len(columns):
            bad += [(at, f"it has {len(cells)} columns, the header {len(columns)}")] if cells else []
            continue
        try:
            cells[place].encode()
        except UnicodeEncodeError:
            bad.append((at, "it is not UTF-8"))
        else:
            yield cells[place]


def stamp(path: str) -> int:
    """A number that changes with the text of a file; 0 for what is no file."""
    file = named_column(path)[0]
    return os.stat(file).st_mtime_ns if os.path.isfile(file) else 0


def open_hf(name: str) -> dict:
    """{split: dataset} of the `datasets` library, from the Hub, a folder or a .parquet file, opened
    once; texts stand in its column `text`.

    Raises InputError if the library is missing or it is not known which column holds the texts.
    """
    return _opened(name, stamp(name))


@cache
def _opened(name: str, _: int) -> dict:
    shown = name.partition("?")[0] if kind(named_column(name)[0]) == PARQUET else f"hf:{name}"
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{shown} needs the datasets library: pip install ssl-lm[datasets]") from error
    try:
        path, options = hf_options(name)
        files: Any = {"data_files": path} if kind(path) == PARQUET else {}
        splits = datasets.load_dataset("parquet" if files else path, options.get("config"), **files)
    except Exception as error:  # the library raises many types
        raise InputError(f"{shown} cannot be opened: {error}") from error
    found = {}
    for split, rows in splits.items():
        strings = [key for key, value in rows.features.items() if getattr(value, "dtype", "") in STRINGS]
        column = text_column(strings, shown.partition("?")[0], options.get("text"))
        found[split] = rows.select_columns([column]).rename_columns({column: "text"})
    return found
