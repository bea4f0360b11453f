"""Texts in files: finding them, cutting them into pieces, reading them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

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


def decode(data: bytes, path: str) -> str:
    """UTF-8 bytes as text. Raises BadText for binary data and for other encodings."""
    if (zero := data.find(0)) >= 0:
        raise BadText(f"{path} is binary: byte {zero} is zero")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        raise BadText(
            f"{path} is not UTF-8: byte {error.start} is {wrong:#04x}. Convert it, with `iconv -f latin1 -t utf8` say"
        ) from error


def read_piece(piece: Piece) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether a document ends with it). Raises BadText."""
    if piece.split is not None:
        yield from ((text, True) for text in _rows(piece))
        return
    with open_file(piece.path) as stream:
        stream.seek(piece.start)
        text = decode(stream.read(piece.size), piece.path)
    if piece.path.endswith(".jsonl"):
        yield from ((document, True) for document in _lines(text, piece.path))
        return
    # all but the last part end with a separator; the last ends with the piece
    *whole, rest = text.split(SEPARATOR)
    yield from ((part.strip("\n"), True) for part in whole if part.strip())
    # blank lines count between two pieces of a document
    if rest.strip() or (rest and not whole and piece.start):
        yield rest if not whole else rest.lstrip("\n"), piece.ends


def _lines(text: str, path: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadText(f"{path}: line {number} of a piece is no object with a `text` ({error})") from error
        if not isinstance(document, str):
            raise BadText(f"{path}: line {number} of a piece has a `text` that is {type(document).__name__}")
        yield document


def _rows(piece: Piece) -> list[str]:
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
