"""Data that a program gives as objects: a `Dataset` of torch, a list of paths or of pictures, a
source of its own.

A picture is a path, a PIL image, an array (h, w) or (h, w, c), or a tensor (h, w) or (c, h, w). It
holds uint8 or uint16, or floats within 0..1, which become 8 bits.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Subset

from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_train.data.images import MAX_PIXELS, ImageFiles, pillow_to_tensor, read_image, to_tensor
from ssl_train.data.names import digest, number_labels

KINDS = (
    "a Dataset of torch (with a length, and samples by number), a list of paths, of PIL images or of arrays, a source of "
    "ssl_train, {'train': …, 'test': …} of these, or a name: a folder, a table, hf:NAME"
)
SAMPLE = (
    "a sample is a picture, (picture, label) or {'image': picture, 'label': label}; a picture is a path, a PIL image, a "
    "uint8 array (h, w, c) or a uint8 tensor (c, h, w), or one of floats within 0..1"
)
LOOKED = 16
"""Samples, evenly spread, whose pixels are part of a fingerprint."""
MANY = 10_000
"""From this many samples on, a warning says that all are read for their labels."""


class NoPicture(BadSample):
    """A sample of a type that no picture has, so the others will not have one either."""


def open_given(data: Any, *, channels: int, split: str = "train", kind: Callable[..., Any] | None = None) -> Any:
    """A source of what a program gave as `data`.

    `kind(data, title, channels)` makes it where samples are read by number, by default `Given`.
    Raises DataError, which says what can be given, and NoTestSplit.
    """
    if isinstance(data, Mapping):
        if "train" not in data or not data.keys() <= {"train", "test"}:
            raise DataError(f"data is a dict with {', '.join(map(repr, data)) or 'nothing'}: give {KINDS}")
        if split in data:
            source = open_given(data[split], channels=channels, kind=kind)
            if "test" in data and hasattr(source, "undivided"):
                source.undivided = False
            return source
    if split == "test":
        raise NoTestSplit("data given in Python have a test part if they are {'train': …, 'test': …}")
    if hasattr(data, "load") and hasattr(data, "fingerprint"):
        return data
    name = type(data).__name__
    if isinstance(data, str) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(f"data is of type {name}: give {KINDS}")
    if not len(data):
        raise DataError(f"the {name} that was given as data is empty")
    if not isinstance(data, list | tuple | np.ndarray | Tensor):
        return (kind or Given)(data, name, channels)
    if all(isinstance(item, str | os.PathLike) for item in data):
        paths: Any = data
        return ImageFiles(Path.cwd(), [os.fspath(path) for path in paths], channels)
    return (kind or Given)(data, "images", channels)


class Given:
    """Samples that a program gives by number: pictures, with labels or without.

    Labels are the attribute `targets` or `labels` of a torch `Dataset` if they agree with its
    samples; otherwise every sample is read once for its label.
    """

    undivided = True
    many = MANY
    """up to so many samples are read to tell them apart"""
    max_pixels = MAX_PIXELS
    """`Opened` sets it from the config"""

    def __init__(self, data: Any, title: str, channels: int) -> None:
        """Raises DataError, which says what sample 0 is, unless it holds a picture."""
        self.data, self.title, self.channels = data, title, channels
        self.looked = np.unique(np.linspace(0, len(data) - 1, LOOKED).astype(int)).tolist()
        reasons = []
        for index in self.looked:
            try:
                self.load(index)
                break
            except NoPicture as error:
                raise DataError(f"{self.name(index)} is of type {kind_of(data[index])}: {error}") from error
            except BadSample as error:  # the run will name it, and count
                reasons.append(f"{self.name(index)}: {error}")
        else:
            what = f"none of {len(reasons)} samples of {title} can be read, the first: {reasons[0]}"
            raise DataError(f"{what} (an array is (h, w, c), a tensor (c, h, w))")
        self.labels, self.classes = self._labels(index)

    def __len__(self) -> int:
        return len(self.data)

    def item(self, index: int) -> Any:
        """A sample as the program gives it. Raises BadSample."""
        try:
            return self.data[index]
        except Exception as error:  # whatever a Dataset's own reader raises
            raise BadSample(f"{type(error).__name__}: {error}") from error

    def load(self, index: int) -> dict[str, Any]:
        """{"image": uint8 or uint16 (c, h, w)}, a copy. Raises BadSample."""
        item = self.item(index)
        if isinstance(item, Mapping):
            if "image" not in item:
                raise NoPicture(SAMPLE)
            item = item["image"]
        elif isinstance(item, tuple | list) and item:
            item = item[0]
        return {"image": pixels(item, self.channels, self.max_pixels)}

    def label(self, item: Any) -> Any:
        """What stands for the label in a sample; () if there is no place for one."""
        if isinstance(item, Mapping):
            return item.get("label", ())
        return item[1] if isinstance(item, tuple | list) and len(item) > 1 else ()

    def name(self, index: int) -> str:
        item = self.data[index] if isinstance(self.data, list) else None
        return os.fspath(item) if isinstance(item, str | os.PathLike) else f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        """Of the length, the labels and the pixels of LOOKED samples, which are read twice.

        Raises DataError if the second reading differs: a run could then not be repeated.
        """
        first, second = ([self.looks(index) for index in self.looked] for _ in range(2))
        for index, (one, other) in zip(self.looked, zip(first, second, strict=True), strict=True):
            if one != other:
                what = f"{self.name(index)} has other pixels each time it is read: leave random transforms out,"
                raise DataError(f"{what} for the method makes random views itself, which a resumed run repeats")
        return digest(type(self.data).__name__.encode(), np.array(len(self)), *first, self.labels)

    def content(self, index: int) -> bytes:
        return self.load(index)["image"].contiguous().numpy().tobytes()

    def looks(self, index: int) -> bytes:
        """What a fingerprint takes of a sample; empty for one that cannot be read."""
        try:
            return self.content(index)
        except BadSample:
            return b""

    def _labels(self, looked: int) -> tuple[np.ndarray | None, list[str] | None]:
        """(labels, classes); `looked` is the number of a sample that can be read."""
        first, base, indices = self.label(self.item(looked)), self.data, np.arange(len(self))
        while isinstance(base, Subset):
            base, indices = base.dataset, np.asarray(base.indices)[indices]
        beside, names = labels_beside(base), getattr(base, "classes", None)
        if beside is not None and (first == () or class_of(first) == beside[indices[looked]]):
            return numbered(beside[indices].tolist(), names)
        if first == ():
            return None, None
        if first is not None and class_of(first) is None:
            what = f"the label of {self.name(looked)} is of type {kind_of(first)}"
            warnings.warn(f"{what}, not a class: labels are not used", stacklevel=5)
            return None, None
        if len(self) >= MANY:
            what = f"all {len(self):,} samples of {self.title} are read once for their labels:"
            warnings.warn(f"{what} an attribute `targets` with the classes as integers saves this", stacklevel=5)
        return numbered([self._class(index) for index in range(len(self))], names)

    def _class(self, index: int) -> int | str | None:
        with suppress(BadSample):  # the loader reports it
            return class_of(self.label(self.item(index)))


def class_of(label: Any) -> int | str | None:
    """A label as a number or a word; None for what is no class."""
    if isinstance(label, str):
        return label or None
    if not isinstance(label, int | np.generic | np.ndarray | Tensor):
        return None
    array = np.asarray(label.cpu() if isinstance(label, Tensor) else label)
    return int(array) if array.shape == () and array.dtype.kind in "iub" else None


def labels_beside(dataset: Any) -> np.ndarray | None:
    """The integers (n,) that torchvision's data sets and others keep beside their samples."""
    for attribute in ("targets", "labels", "_labels", "y"):
        with suppress(ValueError, TypeError):  # ragged lists, tensors on a GPU
            values = np.asarray(getattr(dataset, attribute, ()))
            if values.shape == (len(dataset),) and values.dtype.kind in "iu":
                return values.astype(np.int64)
    return None


def numbered(labels: Sequence[int | str | None], names: Any) -> tuple[np.ndarray | None, list[str] | None]:
    """(labels int64 (n,), classes) of words, or of numbers, whose classes are `names` if there are
    any."""
    if not all(isinstance(label, int) for label in labels if label is not None):
        return number_labels(["" if label is None else str(label) for label in labels])
    array = np.array([-1 if label is None else label for label in labels], dtype=np.int64)
    names = names if names and len(names) > array.max() else range(array.max() + 1)
    return array, [name[0] if isinstance(name, tuple) else str(name) for name in names]


def pixels(image: Any, channels: int, max_pixels: int) -> Tensor:
    """A picture as uint8 or uint16 (c, h, w). Raises BadSample, and NoPicture for another type."""
    if isinstance(image, str | os.PathLike):
        return read_image(image, channels, max_pixels)
    if isinstance(image, Image.Image):
        # Not decoded yet: loader processes would share its position in the file, and once decoded
        # it would stay in memory.
        if getattr(image, "tile", None) and getattr(image, "filename", "") and image.tell() == 0:
            return read_image(image.filename, channels, max_pixels)  # type: ignore[attr-defined]
        try:
            return pillow_to_tensor(ImageOps.exif_transpose(image), channels)  # upright, as from a file
        except (OSError, ValueError, SyntaxError) as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error
    array = image
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # numpy has no bf16
        array = (tensor.movedim(0, -1) if tensor.ndim == 3 else tensor).numpy()  # c h w -> h w c
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or not array.size:
        raise NoPicture(SAMPLE)
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):
            what = f"floats from {low:.3g} to {high:.3g}: leave Normalize out, for the method normalises itself,"
            raise NoPicture(f"{what} and give uint8, or floats within 0..1")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype not in (np.uint8, np.uint16):
        raise NoPicture(SAMPLE)
    return to_tensor(array.copy(), channels)


def kind_of(item: Any) -> str:
    """The type of a sample in words, with shapes and keys."""
    if isinstance(item, tuple | list):
        return f"({', '.join(map(kind_of, item[:4]))})"
    if isinstance(item, Mapping):
        return f"{type(item).__name__} with {list(item)}"
    shape = f" {item.dtype} {tuple(item.shape)}" if isinstance(item, np.ndarray | Tensor) else ""
    return type(item).__name__ + shape
