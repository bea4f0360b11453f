"""Sources over the data sets that torchvision and Hugging Face's `datasets` know by name."""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_train.data.files import SPLITS, excerpt, open_file
from ssl_train.data.given import labels_beside, numbered
from ssl_train.data.images import MAX_PIXELS, encoded_or, pillow_to_tensor, read_image
from ssl_train.data.names import digest, hf_options, near, number_labels


class TorchvisionImages:
    """A torchvision data set whose samples are (Pillow image, …)."""

    undivided = False

    def __init__(self, dataset: Any, title: str, channels: int) -> None:
        self.dataset, self.title, self.channels = dataset, title, channels
        labels, names = labels_beside(dataset), getattr(dataset, "classes", None)
        self.labels, self.classes = (None, None) if labels is None else numbered(labels.tolist(), names)

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> dict[str, Any]:
        try:
            image = self.dataset[index][0]
        except Exception as error:  # whatever Pillow and the data set's own reader raise
            raise BadSample(f"{type(error).__name__}: {error}") from error
        return {"image": pillow_to_tensor(image, self.channels)}

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        return digest(self.title.encode(), np.array(len(self)), self.labels)


class HuggingFaceImages:
    """The image column of a `datasets.Dataset`, decoded here by the rules of `read_image`."""

    max_pixels, exact_decode = MAX_PIXELS, False
    undivided = False

    def __init__(self, dataset: Any, title: str, channels: int, options: Mapping[str, str]) -> None:
        """`options` are those of `hf_options`. Raises DataError if a column could be meant, but not
        surely."""
        from datasets import Image as ImageFeature

        columns = [n for n, kind in dataset.features.items() if isinstance(kind, ImageFeature)]
        if not columns:
            raise DataError(f"{title} has no image column, only {list(dataset.features)}")
        named = ("image", "images", "img", "picture", "photo")
        self.column = _column(dataset, title, "image", options.get("image"), columns, named)
        self.dataset, self.title, self.channels, self.options = dataset, title, channels, options
        undecoded = dataset.select_columns([self.column])
        self.rows = undecoded.cast_column(self.column, ImageFeature(decode=False))
        self.labels, self.classes = _hf_labels(dataset, title, options.get("label"))

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> dict[str, Any]:
        return {"image": read_image(self._file(index), self.channels, self.max_pixels)}

    def encoded(self, index: int) -> dict[str, Any]:
        """As `load`, but a JPEG file is not decoded yet, unless the config wants it exact."""
        if self.exact_decode:
            return self.load(index)
        return encoded_or(self._file(index), self.channels, self.max_pixels, lambda: self.load(index))

    def content(self, index: int) -> bytes:
        file = self._file(index)
        with open_file(file) if isinstance(file, str) else file as stream:
            return excerpt(stream)

    def _file(self, index: int) -> str | io.BytesIO:
        image = self.rows[index][self.column]
        if image is None:
            raise BadSample("this row has no image")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]

    def name(self, index: int) -> str:
        image = self.rows[index][self.column]
        return (image and image["path"]) or f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        return digest(self.title.encode(), np.array(len(self)), self.labels)


def open_torchvision(name: str, channels: int, split: str) -> TorchvisionImages:
    """`CIFAR10` or `STL10:unlabeled`, downloaded only where the folder lacks it.

    Raises DataError.
    """
    try:
        from torchvision import datasets as known
    except ImportError as error:
        raise DataError("torchvision: data needs torchvision: pip install torchvision") from error
    name, _, chosen = name.partition(":")
    factory = getattr(known, name, None)
    if name not in known.__all__ or factory is None:
        raise DataError(f"torchvision has no data set {name!r}.{near(name, known.__all__)}")
    if chosen and split == "test":
        raise NoTestSplit(f"torchvision:{name}:{chosen} is one split: name the test data's own")
    root = os.environ.get("TORCHVISION_DATA", "data")
    dataset = _torchvision_split(factory, root, (chosen,) if chosen else SPLITS[split])
    first = dataset[0] if len(dataset) else None
    if not (isinstance(first, tuple) and isinstance(first[0], Image.Image)):
        raise DataError(f"torchvision's {name} does not hold (image, label) pairs")
    source = TorchvisionImages(dataset, f"torchvision:{name}:{chosen or split}", channels)
    source.undivided = bool(chosen) or not {"train", "split"} & inspect.signature(factory).parameters.keys()
    return source


def _torchvision_split(factory: Callable[..., Any], root: str, names: tuple[str, ...]) -> Any:
    parameters = inspect.signature(factory).parameters
    if "root" not in parameters:
        raise DataError(f"torchvision's {factory.__name__} is not read from a folder")
    if "train" in parameters:
        return _torchvision_open(factory, root, train=names[0] == "train")
    if "split" not in parameters:
        if names != SPLITS["train"]:
            raise NoTestSplit(f"torchvision's {factory.__name__} has no split but the whole")
        return _torchvision_open(factory, root)
    refusals: list[ValueError] = []
    for name in names:
        try:
            return _torchvision_open(factory, root, split=name)
        except DataError:
            raise
        except ValueError as error:  # how torchvision says which splits there are
            refusals.append(error)
    missing = NoTestSplit if names == SPLITS["test"] else DataError
    raise missing(f"torchvision's {factory.__name__}: {refusals[0]}") from refusals[0]


def _torchvision_open(factory: Callable[..., Any], root: str, **options: Any) -> Any:
    try:
        try:
            return factory(root, **options)
        except (RuntimeError, OSError):
            if "download" not in inspect.signature(factory).parameters:
                raise
            return factory(root, **options, download=True)
    except (RuntimeError, OSError, TypeError) as error:
        what = f"{factory.__name__} is not in the folder {root!r} and could not be fetched ({error}):"
        raise DataError(f"{what} put its files there, or set TORCHVISION_DATA to the folder that has them") from error


def open_hf(name: str, channels: int, split: str) -> HuggingFaceImages:
    """`name`, `name:split`, or the path of a folder or .parquet file, each with the options of
    `hf_options` behind it. Raises DataError."""
    try:
        import datasets
    except ImportError as error:
        raise DataError('hf: data needs the datasets package: pip install "ssl-train[datasets]"') from error
    chosen = ""
    name, options = hf_options(name)
    if not Path(name).exists():
        name, _, chosen = name.partition(":")
    try:
        if Path(name).is_file():
            loaded = datasets.load_dataset("parquet", data_files=name)
        elif any(Path(name, mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, options.get("config"))
    except Exception as error:  # of the network, the Hub, Arrow and each format
        remedy = f". Choose one with hf:{name}?config=…" if "onfig name is missing" in str(error) else ""
        raise DataError(f"datasets cannot load {name!r}: {error}{remedy}") from error
    title = f"hf:{name}:{chosen or split}"
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    for candidate in (chosen,) if chosen and split == "train" else () if chosen else SPLITS[split]:
        if candidate in loaded:
            source = HuggingFaceImages(loaded[candidate], title, channels, options)
            source.undivided = bool(chosen) or not set(SPLITS["test"]) & set(loaded)
            return source
    missing = NoTestSplit if split == "test" else DataError
    raise missing(f"{name} has the splits {list(loaded)}: choose one with hf:{name}:<split>")


def _column(
    dataset: Any, title: str, option: str, given: str | None, columns: list[str], named: tuple[str, ...]
) -> str:
    """The column that the user gave, else the first of `named` in `columns`, else the only one of
    `columns`. Raises DataError if there are several."""
    if given is not None:
        if given not in columns:
            what = f"{title} has no {option} column {given!r}, only {columns or 'none'} of {list(dataset.features)}"
            raise DataError(f"{what}.{near(given, columns)}")
        return given
    known = [name for name in named if name in columns]
    if not known and len(columns) > 1:
        raise DataError(f"{title} has several {option} columns, {columns}: choose one with hf:name?{option}=…")
    return known[0] if known else columns[0]


def _hf_labels(dataset: Any, title: str, given: str | None) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels of the column that the user gave, of one called `label`, or of the only ClassLabel.

    Raises DataError if several could be meant, or if the column holds lists or floats.
    """
    from datasets import ClassLabel, Value

    named = ("label", "labels")
    columns = [n for n, kind in dataset.features.items() if isinstance(kind, ClassLabel) or n in {*named, given}]
    if given == "" or (given is None and not columns):
        return None, None
    column = _column(dataset, title, "label", given, columns, named)
    kind = dataset.features[column]
    whole = isinstance(kind, Value) and kind.dtype.startswith(("int", "uint", "string", "large_string", "bool"))
    if not (isinstance(kind, ClassLabel) or whole):
        what = f"{title}: its column {column!r} holds {kind}, not one class a row:"
        raise DataError(f"{what} choose another with hf:name?label=…, or none with hf:name?label=")
    values = dataset.select_columns([column])[:][column]
    if isinstance(kind, ClassLabel):
        return np.array([-1 if v is None else v for v in values], dtype=np.int64), list(kind.names)
    return number_labels(["" if v is None else str(v) for v in values])
