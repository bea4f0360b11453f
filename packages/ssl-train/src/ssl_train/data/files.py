"""Files and folders as users have them: which files lie below a folder, which sub-folders are
splits, and how a file is opened. Imports no torch."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ssl_core.errors import DataError, NoTestSplit

SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation", "dev")}
"""Names of sub-folders that are splits, in any case of letters; the first that exists counts."""
SPLIT_NAMES = {name for names in SPLITS.values() for name in names}


def walk(root: Path, endings: tuple[str, ...] = ("",), skip: Path | None = None) -> list[str]:
    """Paths of the files below `root`, relative to it and sorted, whose names end in one of
    `endings`.

    Hidden files and folders and the folder `skip` are left out, and so are pipes, sockets and
    devices. Links to folders are followed, but each real folder is entered once, so links that lead
    in circles end. Broken links are listed: opening one fails with its name. A folder whose path is
    too long for the system is named in a warning and left out. Raises DataError if another folder
    cannot be listed.
    """
    found: list[str] = []
    seen = set() if skip is None or not skip.exists() else {_identity(skip)}
    todo = [""]
    while todo:
        inside = todo.pop()
        try:
            place = _identity(root / inside)
            if place in seen:
                continue
            seen.add(place)
            with os.scandir(root / inside) as entries:
                visible = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and inside:
                name = printable(inside)
                warnings.warn(f"the path {name[:60]}… below {root} is too long and is left out", stacklevel=2)
                continue
            raise DataError(f"cannot list {printable(str(root / inside))}: {error.strerror}") from error
        for entry in reversed(visible):  # the stack `todo` gives the last one first
            if _is_folder(entry):
                todo.append(f"{inside}{entry.name}/")
            elif entry.name.lower().endswith(endings) and _may_be_a_file(entry):
                found.append(inside + entry.name)
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    place = os.stat(folder)
    return place.st_dev, place.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _may_be_a_file(entry: os.DirEntry[str]) -> bool:
    try:
        kind = entry.stat().st_mode
    except OSError:  # a broken link, which is reported as a bad sample, or a file that has just gone
        return True
    return stat.S_ISREG(kind)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes, the only way in which this package opens users' data.

    A pipe, a socket or a device could block for ever or never end. So the call does not wait, and
    raises OSError for anything but a regular file, also through links. The message has no path.
    """
    # a pipe without a writer blocks `open` itself, unless it is told not to wait
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError("a folder, not a file")
        if not stat.S_ISREG(kind):
            raise OSError("a pipe, socket or device, not a file: copy its content into a file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def excerpt(stream: BinaryIO) -> bytes:
    """Size, first and middle 4 kB of an opened file: bytes that tell one picture from another."""
    size = stream.seek(0, os.SEEK_END)
    blocks = [size.to_bytes(8, "little")]
    for start in (0, size // 2):  # the rows on top of uncompressed pictures may all be black
        stream.seek(start)
        blocks.append(stream.read(4096))
    return b"".join(blocks)


def split_folder(folder: Path, split: str) -> Path:
    """Where the split "train" or "test" of `folder` lies, by the names in SPLITS.

    A folder without both parts is training data as a whole; asked for "test", it raises
    NoTestSplit. Raises DataError for names that differ only in case, such as `Train` and `train`.
    """
    parts = _split_folders(folder)
    if "train" in parts and "test" in parts:
        return parts[split]
    if split == "test":
        what = f"{folder} has no test split: make {folder}/train and {folder}/test, or name the test data's own folder"
        raise NoTestSplit(what)
    return folder


def _split_folders(folder: Path) -> dict[str, Path]:
    """{"train": …, "test": …}, as far as sub-folders of `folder` have such names."""
    there: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if name.lower() in SPLIT_NAMES and (folder / name).is_dir():
            there.setdefault(name.lower(), []).append(name)
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        for name in names:
            if name in there:
                if len(there[name]) > 1:
                    raise DataError(f"{folder} has {' and '.join(there[name])}: leave one of them there")
                found[split] = folder / there[name][0]
                break
    return found


def class_names(root: Path, paths: Iterable[str]) -> list[str]:
    """The class of each path below `root`: its first sub-folder, "" for a file in `root` itself.

    Splits are never classes. If `train` is the only sub-folder, the classes lie below it. Raises
    DataError if a sub-folder with the name of a split lies beside others.
    """
    paths = list(paths)
    tops = [path.partition("/")[0] if "/" in path else "" for path in paths]
    there = sorted(set(tops) - {""})
    splits = [top for top in there if top.lower() in SPLIT_NAMES]
    if not splits:
        return tops
    if len(there) == 1:
        return class_names(root, [path.partition("/")[2] for path in paths])
    names = " ".join(sorted(SPLIT_NAMES))
    what = f"{root} has {', '.join(splits)} among its sub-folders {', '.join(there[:9])}, a split and not a class:"
    remedy = "make it train/ and test/, name one of them as the data, or rename what is a class"
    raise DataError(f"{what} {remedy} (names of splits: {names})")


def printable(text: str) -> str:
    """`text` in one line that any terminal and any UTF-8 file takes.

    Control characters and bytes that are no UTF-8 come as escapes: "\\n", "\\x1b", "\\udce9".
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
