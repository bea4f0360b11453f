"""Sources: where samples are found, by number, with a label and a name each.

`open_source` turns what a user writes after `--data` into one. A source is opened in the main
process and shared with the workers: it holds a million paths in two flat buffers and opens a file
only to load it.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from ssl_core.errors import DataError, NoTestSplit
from ssl_train.data.images import faster_jpeg, read_image, to_tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
MANY = 10_000  # files from which on importing a faster decoder pays
_KINDS = (
    "a folder of images, a .csv or .tsv file with a column 'path', an .npz file with an array "
    "'images', scenes, photos, torchvision:<name> or hf:<name or path>"
)


class Source(Protocol):
    """What the loader and the evaluation read. `labels` is int64 (n,), -1 = no label, or None."""

    @property
    def classes(self) -> list[str] | None: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> dict[str, Any]:
        """{"image": uint8 tensor (c, h, w)}. Raises BadSample where it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """The sample in messages and in `embed`'s output: for files, the path in the folder."""
        ...

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the samples' names, number or labels."""
        ...


def open_source(
    data: str | os.PathLike[str] | None = None,
    *,
    channels: int = 3,
    split: str = "train",
    size: int | None = None,
) -> Source:
    """Open the data that `data` names; images come with `channels` channels.

    - None or "scenes": rendered pictures (`ssl_train.data.scenes`), 8,000 to train, 2,000 to test;
    - "photos": crops of real photographs (`ssl_train.data.photos`), 4,000 and 1,000;
    - a folder: all images in it, labelled by the first sub-folder where there are two or more; with
      `train` and `test` (or `val`) in it, these are the splits;
    - a .csv or .tsv file with the header `path,label` or `path`, paths from its own folder on;
    - an .npz file with uint8 or uint16 `images` (n, h, w, c) or (n, h, w) and perhaps integer `labels` (n,);
    - "torchvision:CIFAR10", from the folder in TORCHVISION_DATA, else `data`;
    - "hf:name" by the `datasets` package: of the Hub, a local folder or a .parquet file.
    The last two take a split of their own after another colon: "torchvision:STL10:unlabeled". A `Path` is always a
    path; a folder that is called like one of these is reached by a string too, as "./scenes".

    `split` is "train" or "test". `size` is the side in pixels of pictures made on the fly (default
    32); files keep theirs. Raises DataError, which says what to do, where the data cannot be used.
    """
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r}: choose 'train' or 'test'")
    if channels < 1:
        raise DataError(f"channels = {channels}: an image needs one or more")
    if (name := built_in(data)) is not None:
        return _open_built_in(name, channels, split, size or 32)
    assert data is not None
    text = os.fspath(data)
    kind, colon, rest = text.partition(":")
    if colon and kind in ("torchvision", "hf"):
        from ssl_train.data import libraries

        open_kind = libraries.open_torchvision if kind == "torchvision" else libraries.open_hf
        return open_kind(rest, channels, split)
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, channels, split)
    if not path.exists():
        raise DataError(f"there is no {text!r}.{_near_path(path)} Give {_KINDS}")
    if split == "test":
        raise NoTestSplit(f"{path} has no test split: name the test data's own file")
    if path.suffix.lower() in (".csv", ".tsv"):
        return _open_csv(path, channels)
    if path.suffix.lower() == ".npz":
        return _open_npz(path, channels)
    raise DataError(f"cannot read {path} as a data set. Give {_KINDS}")


def built_in(data: str | os.PathLike[str] | None) -> str | None:
    """The built-in pictures that `data` means, "scenes" or "photos"; None where it means something else.

    Raises DataError where a file or folder here has that name too: neither is taken silently.
    """
    if data is None:
        return "scenes"
    if isinstance(data, os.PathLike) or data not in ("scenes", "photos"):
        return None
    if os.path.lexists(data):
        raise DataError(
            f"{data!r} is the name of built-in pictures and of a folder here: write ./{data} for the folder; for the "
            "pictures start in another folder"
        )
    return data


class PathTable(Sequence[str]):
    """An immutable list of paths in one buffer: workers share it, and it pickles at memory speed.

    A list of a million `str` would be copied into every worker by its reference counts.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.buffer = b"".join(encoded)
        self.offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(path) for path in encoded], out=self.offsets[1:])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        return os.fsdecode(self.buffer[self.offsets[index] : self.offsets[index + 1]])


class ImageFiles:
    """Image files under `root`; the paths are relative to it, or absolute."""

    def __init__(
        self,
        root: Path,
        paths: Iterable[str],
        channels: int,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.root, self.paths, self.channels = str(root), PathTable(paths), channels
        self.labels, self.classes = labels, classes
        if len(self.paths) >= MANY:
            faster_jpeg()

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> dict[str, Any]:
        return {"image": read_image(os.path.join(self.root, self.paths[index]), self.channels)}

    def name(self, index: int) -> str:
        return self.paths[index]

    def fingerprint(self) -> str:
        return digest(self.paths.buffer, self.paths.offsets, self.labels)


class ImageArray:
    """Images in memory, uint8 or uint16 (n, h, w, c); they keep their type."""

    def __init__(
        self,
        images: np.ndarray,
        channels: int,
        title: str,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.images, self.channels, self.title = images, channels, title
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> dict[str, Any]:
        # a copy, since whoever changes a sample in place would change the data
        return {"image": to_tensor(self.images[index].copy(), self.channels)}

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        ends = self.images[[0, -1]]  # as many bytes as tell two files of one shape apart
        return digest(self.title.encode(), np.array(self.images.shape), ends, self.labels)


def digest(*parts: bytes | np.ndarray | None) -> str:
    """Sixteen hex digits of the parts' bytes and lengths."""
    total = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else part or b""
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()[:16]


def _open_built_in(name: str, channels: int, split: str, size: int) -> Source:
    if channels not in (1, 3):
        raise DataError(f"{name} has 1 or 3 channels, not {channels}")
    if name == "scenes":
        from ssl_train.data.scenes import Scenes

        if split == "train":
            return Scenes(number=8000, seed=0, size=size, channels=channels)
        return Scenes(number=2000, seed=1, size=size, channels=channels)
    from ssl_train.data.photos import Photos

    return Photos(4000 if split == "train" else 1000, split, size, channels)


def _open_folder(folder: Path, channels: int, split: str) -> ImageFiles:
    test = next((name for name in ("test", "val") if (folder / name).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        if split == "test":
            raise NoTestSplit(
                f"{folder} has no test split: make {folder}/train and {folder}/test, "
                "or name the test images' own folder"
            )
        part, others = "", {}
    else:
        # both are listed, so that a class that one of them lacks does not shift the other's labels
        part, other = ("train", test) if split == "train" else (test, "train")
        others = {path.partition("/")[0] for path in scan(folder / other) if "/" in path}
    paths = scan(folder / part)
    if not paths:
        raise DataError(
            f"no images in {folder / part}: looked for {' '.join(EXTENSIONS)} "
            "in it and its sub-folders, hidden ones left out"
        )
    tops = [path.partition("/")[0] if "/" in path else "" for path in paths]
    classes = sorted({*tops, *others} - {""})
    full = (f"{part}/{path}" for path in paths) if part else paths
    if len(classes) < 2:
        return ImageFiles(folder, full, channels)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number.get(top, -1) for top in tops], dtype=np.int64)
    return ImageFiles(folder, full, channels, labels, classes)


def scan(root: Path) -> list[str]:
    """Image files below `root`, relative and sorted.

    Each real folder is entered once, so links that lead in circles end.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    todo = [""]
    while todo:
        inside = todo.pop()
        try:
            place = os.stat(root / inside)
            if (place.st_dev, place.st_ino) in seen:
                continue
            seen.add((place.st_dev, place.st_ino))
            with os.scandir(root / inside) as entries:
                visible = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            raise DataError(f"cannot list {root / inside}: {error.strerror}") from error
        for entry in reversed(visible):  # `todo` gives the last one first
            if _is_folder(entry):
                todo.append(f"{inside}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS) and _is_file(entry):
                found.append(inside + entry.name)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    # a broken link stays in, to be reported as a bad sample; a pipe would block whoever opens it
    return entry.is_symlink() or entry.is_file()


def _open_csv(file: Path, channels: int) -> ImageFiles:
    paths: list[str] = []
    words: list[str] = []
    try:
        # a path may hold any bytes, as file names do
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for row, path, word in _csv_rows(file, lines):
                paths.append(contained(path, f"{file}, row {row}"))
                words.append(word)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    if not paths:
        raise DataError(f"{file} has no row below its header")
    return ImageFiles(file.parent, paths, channels, *number_labels(words))


def _csv_rows(file: Path, lines: TextIO) -> Iterator[tuple[int, str, str]]:
    """(row number as an editor counts, path, label or "") of each row that is not blank."""
    delimiter = "\t" if "\t" in lines.readline() else ","
    lines.seek(0)
    rows = csv.reader(lines, delimiter=delimiter)
    try:
        header = next(rows, [])
        names = [name.strip().lower() for name in header]
        if "path" not in names:
            raise DataError(
                f"{file}: the first row is {delimiter.join(header)[:80]!r}: "
                "write the header 'path,label' or 'path' there"
            )
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{file}, row {rows.line_num}: {len(cells)} columns, the header has "
                    f'{len(names)}: put a path with a comma in it between "quotes"'
                )
            row = dict(zip(names, cells, strict=True))
            yield rows.line_num, row["path"], row.get("label", "").strip()
    except csv.Error as error:
        raise DataError(f"{file}, row {rows.line_num}: {error}") from error


def contained(path: str, where: str) -> str:
    """A path as the user wrote it if absolute, else one that cannot leave the folder."""
    if not path.strip() or "\0" in path:
        raise DataError(f"{where}: {path!r} is not a path")
    if os.path.isabs(path):
        return path
    clean = os.path.normpath(path)
    if clean == ".." or clean.startswith(".." + os.sep):
        raise DataError(f"{where}: {path!r} leaves the file's folder: write an absolute path")
    return clean


def number_labels(words: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Words or numbers to (labels int64 (n,), classes): sorted, by value where all are integers.

    "" and, among integers, "-1" mean no label. (None, None) where no sample has one.
    """
    try:
        values: list[Any] = [int(word) if word else -1 for word in words]
        missing: Any = -1
    except ValueError:
        values, missing = list(words), ""
    classes = sorted(set(values) - {missing})
    if not classes:
        return None, None
    number = {value: i for i, value in enumerate(classes)}
    labels = np.array([number.get(value, -1) for value in values], dtype=np.int64)
    return labels, [str(value) for value in classes]


def _open_npz(file: Path, channels: int) -> ImageArray:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if "images" not in arrays:
                raise DataError(f"{file} holds {sorted(arrays)}: name the pictures' array 'images'")
            images = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays else None
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types on damaged bytes
        raise DataError(f"cannot read {file}: {error}") from error
    if images.dtype not in (np.uint8, np.uint16) or images.ndim not in (3, 4) or images.size == 0:
        raise DataError(
            f"{file}: images are {images.dtype} {images.shape}: store uint8 or uint16, (n, h, w, c) or (n, h, w)"
        )
    images = images if images.ndim == 4 else images[..., None]
    found = images.shape[-1]
    grey_as_rgb, luma = (found, channels) == (1, 3), (found, channels) == (3, 1) and images.dtype == np.uint8
    if found != channels and not grey_as_rgb and not luma:
        raise DataError(f"{file}: images, {images.dtype} (n, h, w, c), have {found} channels, not {channels}")
    if labels is None:
        return ImageArray(images, channels, file.name)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < -1:
        raise DataError(
            f"{file}: labels are {labels.dtype} {labels.shape}: store ({len(images)},) integers, "
            "counted from 0, or -1 for no label"
        )
    classes = [str(i) for i in range(labels.max() + 1)]
    return ImageArray(images, channels, file.name, labels.astype(np.int64), classes)


def near(word: str, known: Iterable[str]) -> str:
    """A question after the names in `known` that resemble `word`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _near_path(path: Path) -> str:
    beside = []
    if path.parent.is_dir():
        beside = [str(path.parent / name) for name in os.listdir(path.parent)]
    return near(str(path), [*beside, "scenes", "photos"])
