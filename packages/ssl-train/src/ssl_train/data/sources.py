"""Sources: samples by number, each with a name and perhaps a label.

`open_source` turns what a user writes after `--data` into one. A source is opened in the main
process and shared with the workers: it holds a million paths in two flat buffers and opens a file
only to load it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ssl_core.errors import DataError, NoTestSplit
from ssl_train.data.files import class_names, open_file, split_folder, walk
from ssl_train.data.images import ImageArray, ImageFiles
from ssl_train.data.names import contained, findings, marked, near, number_labels, read_table

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_KINDS = (
    "a folder of images, a .csv or .tsv file with a column 'path', an .npz file with an array "
    "'images', scenes, photos, torchvision:<name> or hf:<name or path>"
)


class Source(Protocol):
    """What the loader and the evaluation read. `labels` is int64 (n,) with -1 for no label, or
    None; of findings, of which a sample may have several, (n, c) of 0, 1 and -1 for not known.

    It may have more: `groups` (n,), equal for samples that belong together; `undivided`, true if
    there is no test part, so that one may be held out of it; `content(index) -> bytes`, which is
    the same for copies; `part(indices)`, some of its samples with all that the source knows of
    them; `encoded(index)`, as `load` but with an image that may not be decoded yet, for views that
    begin with their crops.
    """

    @property
    def classes(self) -> list[str] | None: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> dict[str, Any]:
        """{"image": uint8 tensor (c, h, w)}. Raises BadSample if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """The sample in messages and in the output of `embed`: of a file, its path in the
        folder."""
        ...

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the samples' names, number or labels."""
        ...


def attach(method: Any, source: Source) -> Source:
    """`source` as `method` reads it: its own `attach(source)`, if it has one."""
    hook = getattr(method, "attach", None)
    return source if hook is None else hook(source)


def open_source(
    data: str | os.PathLike[str] | None = None, *, channels: int = 3, split: str = "train", size: int | None = None
) -> Source:
    """Open the data that `data` names; images come with `channels` channels.

    - None or "scenes": rendered pictures (`ssl_train.data.scenes`), 8,000 to train, 2,000 to test;
    - "photos": crops of real photographs (`ssl_train.data.photos`), 4,000 and 1,000;
    - a folder: all images in it, labelled by the first sub-folder if there are two or more; if it
      holds `train` and `test` (or another name in `files.SPLITS`), these are the splits;
    - a .csv or .tsv file with the header `path,label` or `path`; paths start at its own folder. A
      cell "a|b" has two labels. "table.csv?label=NAME" takes another column, and
      "table.csv?label=A,B" a column for each finding, of 1, 0 or nothing where it is not known;
    - an .npz file with uint8 or uint16 `images` (n, h, w, c) or (n, h, w), and perhaps integer
      `labels` (n,);
    - "torchvision:CIFAR10", from the folder in TORCHVISION_DATA, else from `data`;
    - "hf:name" through the `datasets` package: a Hub id, a local folder or a .parquet file.
    The last two take a split of their own after another colon: "torchvision:STL10:unlabeled". A
    `Path` is always a path. A folder that has one of these names is reached as "./scenes".

    `split` is "train" or "test". `size` is the side in pixels of rendered pictures (32 by default);
    files keep their size. Raises DataError, which says what to do, if the data cannot be used.
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
    path, label = table_of(text)
    if path.is_dir():
        return _open_folder(path, channels, split)
    if not path.exists():
        raise DataError(f"there is no {text!r}.{_near_path(path)} Give {_KINDS}")
    if split == "test":
        raise NoTestSplit(f"{path} has no test split: name the test data's own file")
    if path.suffix.lower() in (".csv", ".tsv"):
        return _open_csv(path, channels, label)
    if path.suffix.lower() == ".npz":
        return _open_npz(path, channels)
    raise DataError(f"cannot read {path} as a data set. Give {_KINDS}")


def open_images(data: Any, *, config: Any, split: str = "train") -> Source:
    """`open_source` with the channels of an image method's config, and its size for rendered
    pictures; or `ssl_train.data.given.open_given` for what is no name."""
    if not isinstance(data, str | os.PathLike | None):
        from ssl_train.data.given import open_given  # imports torch's loader

        return open_given(data, channels=config.in_channels, split=split)
    return open_source(data, channels=config.in_channels, split=split, size=max(config.size))


def built_in(data: str | os.PathLike[str] | None) -> str | None:
    """The built-in pictures that `data` names, "scenes" or "photos"; None if it names something
    else.

    Raises DataError if a file or folder here has that name too, since either could be meant.
    """
    if data is None:
        return "scenes"
    if isinstance(data, os.PathLike) or data not in ("scenes", "photos"):
        return None
    if os.path.lexists(data):
        what = f"{data!r} is the name of built-in pictures and of a folder here: write ./{data} for the folder;"
        raise DataError(f"{what} start in another folder for the pictures")
    return data


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
    """Image files of a folder. If it has two splits, both are listed, so that both number the
    classes alike."""
    root = split_folder(folder, split)
    roots = {split: root} if root == folder else {name: split_folder(folder, name) for name in ("train", "test")}
    paths = {name: walk(place, EXTENSIONS) for name, place in roots.items()}
    if not paths[split]:
        what = f"no images in {root}: looked for {' '.join(EXTENSIONS)} in it and its sub-folders, hidden ones left out"
        raise DataError(what)
    # a class is a sub-folder directly below the root; images beside these have no label
    tops = {name: class_names(roots[name], found) for name, found in paths.items()}
    classes = sorted({top for found in tops.values() for top in found} - {""})
    number = {top: i for i, top in enumerate(classes)}
    parts: dict[str, ImageFiles] = {}
    for name, place in roots.items():
        full = [f"{place.name}/{path}" for path in paths[name]] if place != folder else paths[name]
        labels = np.array([number.get(top, -1) for top in tops[name]], dtype=np.int64)
        known = (labels, classes) if len(classes) > 1 else (None, None)
        if full:  # an empty part is an error of whoever asks for it
            parts[name] = ImageFiles(folder, full, channels, *known, parts=None if place == folder else parts)
    return parts[split]


def table_of(data: str | os.PathLike[str]) -> tuple[Path, str]:
    """(path, columns of labels) of "table.csv?label=A,B"; other data have no such columns."""
    path, label = Path(data).expanduser(), ""
    name, mark, option = str(path).partition("?label=")
    return (Path(name), option) if mark and not path.exists() else (path, label)


def column(source: Any, name: str) -> list[str]:
    """The cells of a column of the table that `source` was opened from. Raises DataError, which
    offers those that there are."""
    table = getattr(source, "table", None)
    if table is None:
        raise DataError(f"these data have no column {name!r}: give a .csv with the columns path and {name}")
    columns, rows = read_table(table, strict=False)
    if name.lower() not in columns:
        raise DataError(f"{table} has no column {name!r}, only {columns}.{near(name.lower(), columns)}")
    return [row[name.lower()].strip() for _, row in rows]


def _open_csv(file: Path, channels: int, label: str = "") -> ImageFiles:
    columns, rows = read_table(file, strict=False)
    if "path" not in columns:
        what = f"{file}: the first row is {','.join(columns)[:80]!r}: write the header 'path,label' or 'path' there"
        raise DataError(what)
    table = [(contained(row["path"], place), row.get("label", "").strip()) for place, row in rows]
    if not table:
        raise DataError(f"{file} has no row below its header")
    paths, words = zip(*table, strict=True)
    source = ImageFiles(file.parent, paths, channels)
    source.table = file
    names = [name.strip() for name in label.split(",") if name.strip()]
    if len(names) > 1:
        source.labels = np.array([marked(column(source, name), name) for name in names], dtype=np.int64).T.copy()
        source.classes = names
        return source
    words = column(source, names[0]) if names else words
    several = any("|" in word for word in words)
    source.labels, source.classes = findings(words) if several else number_labels(words)
    return source


def _open_npz(file: Path, channels: int) -> ImageArray:
    try:
        with open_file(file) as stream, np.load(stream, allow_pickle=False) as arrays:
            if "images" not in arrays:
                raise DataError(f"{file} holds {sorted(arrays)}: name the pictures' array 'images'")
            members = {name: arrays[name] for name in ("images", "labels") if name in arrays}
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types on damaged bytes
        raise DataError(f"cannot read {file}: {error}") from error
    for name, member in members.items():
        if not isinstance(member, np.ndarray):  # numpy gives the bytes of what is no .npy
            raise DataError(f"{file}: its member {name!r} is not an array: write it with numpy.savez")
    images, labels = members["images"], members.get("labels")
    if images.dtype not in (np.uint8, np.uint16) or images.ndim not in (3, 4) or images.size == 0:
        what = f"{file}: images are {images.dtype} {images.shape}: store uint8 or uint16, (n, h, w, c) or (n, h, w)"
        raise DataError(what)
    images = images if images.ndim == 4 else images[..., None]
    found = images.shape[-1]
    grey_as_rgb, luma = (found, channels) == (1, 3), (found, channels) == (3, 1) and images.dtype == np.uint8
    if found != channels and not grey_as_rgb and not luma:
        raise DataError(f"{file}: images, {images.dtype} (n, h, w, c), have {found} channels, not {channels}")
    if labels is None:
        return ImageArray(images, channels, file.name)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < -1:
        what = f"{file}: labels are {labels.dtype} {labels.shape}: store ({len(images)},) integers,"
        raise DataError(f"{what} counted from 0, or -1 for no label")
    classes = [str(i) for i in range(labels.max() + 1)]
    return ImageArray(images, channels, file.name, labels.astype(np.int64), classes)


def _near_path(path: Path) -> str:
    beside = []
    if path.parent.is_dir():
        beside = [str(path.parent / name) for name in os.listdir(path.parent)]
    return near(str(path), [*beside, "scenes", "photos"])
