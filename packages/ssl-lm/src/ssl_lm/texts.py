"""Texts in files: finding them, cutting them into pieces, reading them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ssl_core.errors import DataError, InputError
from ssl_train.data.files import open_file, walk
from ssl_train.data.names import hf_options

SEPARATOR = "<|endoftext|>"
"""Separates documents inside one text file."""
ROW = 1000
"""Bytes that a row of a `datasets` split counts as: only reading it tells its length."""


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
    """the split of a data set of the `datasets` library, whose name is then `path`"""

    @property
    def size(self) -> int:
        """Bytes; of a `datasets` split an estimate."""
        return (self.end - self.start) * (ROW if self.split else 1)


def list_files(folder: Path) -> list[Path]:
    """Files below `folder`, sorted, as `walk` finds them. Raises InputError if there is none."""
    found = [folder / name for name in walk(folder)]
    if not found:
        raise InputError(f"there is no file in {folder}")
    return found


def cut(path: Path, size: int, start: int = 0, end: int | None = None) -> list[Piece]:
    """Pieces of about `size` bytes of a file, cut at ends of lines.

    A separator stays with the document that it ends.
    """
    end = path.stat().st_size if end is None else end
    pieces = []
    with open_file(path) as stream:
        while start < end:
            # a rest of up to half a piece goes with the last one
            far = end - start > size * 3 // 2
            stop = min(end, _past_separator(stream, line_end(stream, start + size))) if far else end
            pieces.append(Piece(str(path), start, stop, ends=stop == end))
            start = stop
    return pieces


def line_end(stream: BinaryIO, offset: int) -> int:
    """The end of the line that holds byte `offset`."""
    stream.seek(offset)
    stream.readline()
    return stream.tell()


def _past_separator(stream: BinaryIO, start: int) -> int:
    """The end of the next line that is not blank if it begins with a separator, else `start`."""
    line = b"\n"
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
        for number, row in enumerate(_rows(piece), piece.start):
            if isinstance(row, str):
                yield row, True
            else:
                bad.append((number, f"its text is {type(row).__name__}"))
        return
    with open_file(piece.path) as stream:
        stream.seek(piece.start)
        data = stream.read(piece.size)
    if piece.path.endswith(".jsonl"):
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
    for at, line in _lines(data, piece.start):
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
    """The `text` of every line of JSON that has one."""
    for at, line in _lines(data, piece.start):
        try:
            text = decode(line, piece.path, at)
            if not text.strip():
                continue
            document = json.loads(text)["text"]
            if not isinstance(document, str):
                raise BadText(f"its `text` is {type(document).__name__}, not a string")
            document.encode()  # JSON may hold half of a surrogate pair, which is no character
        except BadText as error:
            bad.append((at, str(error)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            bad.append((at, f"it is no object with a `text` ({error})"))
        else:
            yield document


def _lines(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their line feeds, and the byte of the file where each begins."""
    for line in BytesIO(data):
        yield start, line
        start += len(line)


def _rows(piece: Piece) -> list[Any]:
    return open_hf(piece.path)[piece.split][piece.start : piece.end]["text"]  # type: ignore[no-any-return]


@cache
def open_hf(name: str) -> dict:
    """{split: dataset} of the `datasets` library, from the Hub or a folder, opened once.

    Raises InputError if the library is missing or the data has no column `text`.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError("hf: needs the datasets library: pip install ssl-lm[datasets]") from error
    try:
        name, options = hf_options(name)
        splits = datasets.load_dataset(name, options.get("config"))
    except Exception as error:  # the library raises many types
        raise InputError(f"hf:{name} cannot be opened: {error}") from error
    column = options.get("text", "text")
    for split, rows in splits.items():
        if column not in rows.column_names:
            what = f"hf:{name} has columns {rows.column_names} in {split}, none of them `{column}`"
            raise InputError(f"{what}: name the column of texts with hf:{name}?text=…")
    return {split: rows.select_columns([column]).rename_columns({column: "text"}) for split, rows in splits.items()}
