"""Which text is trained on and which is held out, cut into pieces. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

from ssl_core.errors import InputError, NoTestSplit
from ssl_lm.duplicates import near_duplicates
from ssl_lm.texts import PARQUET, Piece, border, cut, kind, list_files, named_column, open_hf, stamp
from ssl_train.data.files import SPLITS, split_folder

SMALLEST, LARGEST, PARTS = 2**16, 2**26, 64
"""A shard is a 64th of the text, but between 64 kB and 64 MB of it."""
ROWS = 1000
"""Rows of a `datasets` split in a piece."""
TRAINED_ON = 2**27
"""Bytes of text that a tokenizer is trained on at most."""


def find_splits(data: str | Path, held_out: float) -> dict[str, list[Piece]]:
    """Pieces of the training and of the test text.

    A folder with train/ and test/ (or val/) has these splits, and so has a data set of the Hub. Of
    other folders every file is a document, or a table of them. Files that have a share of the bytes
    are held out, by the hash of their names, and near-duplicates stay together. Of one file, its
    end is held out. "data?text=COLUMN" names the column of tables. Raises InputError.
    """
    text, column = named_column(str(data))
    if text.startswith("hf:"):
        return _hf_splits(str(data)[3:], held_out)
    path = Path(text).expanduser()
    if path.is_file() and kind(path) == PARQUET:
        return _hf_splits(_rows_of(path, column), held_out)
    if path.is_file():
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path} is empty")
        first_held = border(path, int((1 - held_out) * size)) if held_out else size
        length = min(LARGEST, max(SMALLEST, size // PARTS))
        return {"train": cut(path, length, 0, first_held, column), "test": cut(path, length, first_held, None, column)}
    if not path.is_dir():
        kinds = "a text file, a .jsonl, .csv or .parquet file, a folder of them, or hf:NAME"
        raise InputError(f"there is no {text!r}: give {kinds}")
    try:
        test = split_folder(path, "test")
    except NoTestSplit:
        files = [file for file in list_files(path) if file.stat().st_size]
        if len(files) == 1:
            return find_splits(f"{files[0]}{str(data).removeprefix(text)}", held_out)
        test_files = _held_out(path, files, held_out) if held_out else set()
        return {
            "train": _whole((file for file in files if file not in test_files), column),
            "test": _whole((file for file in files if file in test_files), column),
        }
    train = split_folder(path, "train")
    return {"train": _whole(list_files(train), column), "test": _whole(list_files(test), column)}


def _held_out(folder: Path, files: list[Path], share: float) -> set[Path]:
    """Files that have about `share` of the bytes, near-duplicates together.

    Raises InputError if all files are near-duplicates.
    """
    # by the hash of the names, so that the order of the files does not count
    groups = sorted(near_duplicates(files), key=lambda group: _name_hash(group[0], folder))
    if len(groups) == 1:
        what = f"the files of {folder} are nearly the same text, so that none can be held out for testing"
        raise InputError(f"{what}: take the copies out, or `ssl-lm prepare` it with --held-out 0")
    sizes = [sum(file.stat().st_size for file in group) for group in groups]
    wanted, taken = share * sum(sizes), 0
    chosen, rest = [], []
    for group, size in zip(groups, sizes, strict=True):
        fits = taken + size / 2 <= wanted
        (chosen if fits else rest).append((size, group))
        taken += size if fits else 0
    # with few files all may be too large: then the smallest, but never all of the text
    if taken < wanted / 2 and len(rest) > 1:
        chosen.append(min(rest))
    return {file for _, group in chosen for file in group}


def _name_hash(file: Path, folder: Path) -> bytes:
    return hashlib.sha256(os.fsencode(file.relative_to(folder))).digest()


def _whole(files: Iterable[Path], column: str | None) -> list[Piece]:
    pieces = []
    for file in files:
        whole = kind(file) == PARQUET
        pieces += _hf_splits(_rows_of(file, column), 0)["train"] if whole else cut(file, LARGEST, column=column)
    return pieces


def _rows_of(file: Path, column: str | None) -> str:
    """A .parquet file as `open_hf` knows it."""
    return str(file) if column is None else f"{file}?text={column}"


def _hf_splits(name: str, held_out: float) -> dict[str, list[Piece]]:
    splits = open_hf(name)
    if "train" not in splits:
        raise InputError(f"hf:{name} has the splits {', '.join(splits)}, none of them `train`")
    # without a split for test, the last rows of `train` are held out, or at least one of several
    rows = len(splits["train"])
    test = next((split for split in SPLITS["test"] if split in splits), None)
    first_held = rows if test or not held_out else max(min(round(rows * (1 - held_out)), rows - 1), 1)
    parts = {
        "train": ("train", 0, first_held),
        "test": (test or "train", 0 if test else first_held, len(splits[test or "train"])),
    }
    return {
        split: [Piece(name, i, min(i + ROWS, end), split=part) for i in range(start, end, ROWS)]
        for split, (part, start, end) in parts.items()
    }


def group(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces in order, grouped into shards."""
    total = sum(piece.size for piece in pieces)
    # an empty room opens a new group, which may grow beyond it by one piece
    size, groups, room = min(LARGEST, max(SMALLEST, total // PARTS)), [], 0
    for piece in pieces:
        if room <= 0:
            groups.append([])
            room = size
        groups[-1].append(piece)
        room -= piece.size
    return groups


def sample(pieces: list[Piece]) -> list[Piece]:
    """Evenly spread pieces, TRAINED_ON bytes at most."""
    # every n-th piece, so that the sample has some of everything
    total = sum(piece.size for piece in pieces)
    return pieces[:: max(1, -(-total // TRAINED_ON))]


def digest_of(splits: dict[str, list[Piece]]) -> str:
    """Sixteen hex digits that change with the names, sizes and times of the files that are read."""
    total = hashlib.sha256()
    for split, pieces in splits.items():
        for piece in pieces:
            total.update(repr((split, *astuple(piece), stamp(piece.path))).encode())
    return total.hexdigest()[:16]
