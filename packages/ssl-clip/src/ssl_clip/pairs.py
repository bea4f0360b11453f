"""Images with captions: sources whose `texts(index)` are the captions of an image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_train.asked import is_given
from ssl_train.data.files import open_file
from ssl_train.data.given import Given, open_given
from ssl_train.data.images import ImageFiles, PathTable, to_tensor
from ssl_train.data.names import contained, digest, number_labels, read_table
from ssl_train.data.scenes import CLASSES, SLOTS, draw, held_out, render
from ssl_train.data.sources import Source, built_in, open_source
from ssl_train.data.split import Subset

IMAGE_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path")
TEXT_COLUMNS = ("caption", "captions", "text", "texts", "title", "sentences")
SCENES = {"train": (8000, 0), "test": (1000, 1)}
"""Pictures and seed of the built-in pairs; no combination of two objects is in both."""
KINDS = (
    "a .csv, .tsv or .jsonl file with columns 'path' and 'caption', a folder with captions (name.txt) beside the images, "
    "hf:<name> with an image and a text column, or (picture, caption) in Python"
)


def open_pairs(data: Any, *, config: Any, split: str = "train") -> Source:
    """Open the pairs that `data` names.

    - None: captioned scenes; one combination of two objects in ten is in the test split alone;
    - a .csv or .tsv (separator sniffed) or .jsonl file with a path and a caption in each row. Paths
      start at its own folder; several rows, or a list in .jsonl, give an image several captions. A
      column `label` gives classes, for zero-shot and k-NN accuracy;
    - a folder with `name.txt` beside `name.jpg`, one caption a line. Splits and classes are those
      of `ssl_train.data.sources.open_source`;
    - hf:name with an image column and a text column; "hf:name?text=…" names the latter;
    - what `ssl_train.data.given.open_given` takes, of samples (picture, caption or captions) or
      {"image": …, "caption": …}, perhaps with a "label".
    Images without captions (a folder of classes, torchvision:name) come as
    `ssl_train.data.sources.open_source` has them: to be classified, searched and evaluated;
    training on them is refused. Raises DataError, naming the row.
    """
    if is_given(data):
        return open_given(data, channels=config.in_channels, split=split, kind=_given)
    size = max(config.size)
    if built_in(data) == "scenes":
        return CaptionedScenes(split, size, config.in_channels)
    assert data is not None
    text = os.fspath(data)
    path = Path(text).expanduser()
    # A table of pairs. A table without a column of captions is one of images, perhaps with labels.
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl") and path.is_file():
        names, rows = read_table(path)
        columns = _columns(path, names)
        if columns is None:
            return open_source(data, channels=config.in_channels, split=split, size=size)
        if split == "test":
            raise NoTestSplit(f"{path} has no test split: name the test data's own file")
        return PairFiles.of_rows(path.parent, _pairs(rows, *columns), config.in_channels, path)
    if path.is_dir():
        return _open_folder(path, config.in_channels, split, size)
    source = open_source(data, channels=config.in_channels, split=split, size=size)
    if text.startswith("hf:"):
        return _open_hf(source, text)
    return source


class PairFiles(ImageFiles):
    """Image files under `root`, each with one caption or more."""

    def __init__(
        self,
        root: Path,
        paths: list[str],
        texts: list[list[str]],
        channels: int,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__(root, paths, channels, labels, classes)
        # All captions in one buffer, those of an image beside each other.
        self._first = np.cumsum([0, *map(len, texts)])
        self._texts = PathTable(caption for captions in texts for caption in captions)

    @classmethod
    def of_rows(
        cls, root: Path, rows: Iterator[tuple[str, str, list[str], str]], channels: int, where: Path
    ) -> PairFiles:
        """From (row's name in messages, path, captions, label or ""); rows of one path are joined.

        Raises DataError for a missing caption, and for a path with two labels.
        """
        found: dict[str, list[str]] = {}
        words: dict[str, str] = {}
        for row, path, captions, word in rows:
            # One line each, whatever blanks were typed.
            captions = [" ".join(caption.split()) for caption in captions]
            if not captions or not all(captions):
                raise DataError(f"{row}: the caption of {path!r} is missing or empty: write one, or remove the row")
            path = contained(path, row)
            found.setdefault(path, []).extend(captions)
            if words.setdefault(path, word) != word:
                raise DataError(f"{row}: {path!r} has the labels {words[path]!r} and {word!r}: keep one")
        if not found:
            raise DataError(f"{where} holds no pair")
        return cls(root, list(found), list(found.values()), channels, *number_labels(list(words.values())))

    def texts(self, index: int) -> list[str]:
        return [self._texts[i] for i in range(self._first[index], self._first[index + 1])]

    def captions(self) -> Iterator[str]:
        return iter(self._texts)

    def part(self, indices: np.ndarray) -> PairSubset:
        return PairSubset(self, indices)

    def fingerprint(self) -> str:
        return digest(self.paths.buffer, self._texts.buffer, self._texts.offsets, self._first, self.labels)


def each_caption(source: Any) -> Iterator[str]:
    """The captions of a source that is read sample by sample, without those of bad samples."""
    for index in range(len(source)):
        with suppress(BadSample):  # the loader names it
            yield from source.texts(index)


class GivenPairs(Given):
    """Samples (picture, caption or captions), or dicts, that a program gives by number."""

    def part(self, indices: np.ndarray) -> PairSubset:
        return PairSubset(self, indices)

    def label(self, item: Any) -> Any:
        return item.get("label", ()) if isinstance(item, Mapping) else ()

    def texts(self, index: int) -> list[str]:
        """Raises BadSample for a sample without captions."""
        item = self.item(index)
        if isinstance(item, Mapping):
            found = next((item[name] for name in TEXT_COLUMNS if name in item), None)
        else:
            found = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
        captions = [found] if isinstance(found, str) else found
        if not isinstance(captions, list | tuple) or not captions or not all(isinstance(c, str) for c in captions):
            raise BadSample("its caption is missing or no text")
        captions = [" ".join(caption.split()) for caption in captions]
        if not all(captions):
            raise BadSample("its caption is empty")
        return captions

    def captions(self) -> Iterator[str]:
        return each_caption(self)

    def looks(self, index: int) -> bytes:
        return super().looks(index) + self.words(index)

    def words(self, index: int) -> bytes:
        """The captions as bytes; empty for a sample that cannot be read."""
        try:
            return "\n".join(self.texts(index)).encode()
        except BadSample:
            return b""


def _given(data: Any, title: str, channels: int) -> Given:
    """Pairs, or pictures alone if the samples have no text."""
    pairs = GivenPairs(data, title, channels)
    return pairs if any(pairs.words(index) for index in pairs.looked) else Given(data, title, channels)


class PairSubset(Subset):
    """Some images of a source, with all of their captions."""

    source: Any

    def texts(self, index: int) -> list[str]:
        return self.source.texts(int(self.indices[index]))

    def captions(self) -> Iterator[str]:
        return each_caption(self)


class CaptionedScenes:
    """Rendered pictures of two objects, with captions; labels are the class of the main object.

    One combination of two objects in ten is in the test split, and there alone.
    """

    def __init__(self, split: str, size: int, channels: int) -> None:
        number, self.seed = SCENES[split]
        self.size, self.channels, self.classes = size, channels, list(CLASSES)
        # Scenes are drawn in order, and those of the other split are left out.
        indices, labels, index = [], [], 0
        while len(indices) < number:
            factors = draw(self.seed, index, second_object=True)
            assert factors.second is not None
            if held_out(factors.main.name, factors.second.name) == (split == "test"):
                indices.append(index)
                labels.append(factors.main.label)
            index += 1
        self.indices, self.labels = np.array(indices), np.array(labels)
        # Templates for zero-shot classes: the captions that the class could stand in.
        words = product(("small", "large"), ("left of", "right of", "above", "below"), CLASSES)
        self.templates = tuple(f"a {size} {{}} {relation} a {other}" for size, relation, other in words)

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> dict[str, Any]:
        scene = render(self.seed, int(self.indices[index]), self.size, second_object=True)
        return {"image": to_tensor(scene.image, self.channels)}

    def name(self, index: int) -> str:
        return f"scenes/{self.seed}/{int(self.indices[index]):06d}"

    def texts(self, index: int) -> list[str]:
        return [draw(self.seed, int(self.indices[index]), second_object=True).caption]

    def captions(self) -> Iterator[str]:
        return each_caption(self)

    def fingerprint(self) -> str:
        return digest(f"pairs {SLOTS} {self.seed} {self.size} {self.channels}".encode(), self.indices)


class HuggingFacePairs:
    """A `datasets` data set with an image column and a column of texts, or of lists of them."""

    def __init__(self, source: Any, column: str) -> None:
        self.source, self.column = source, column
        self.labels, self.classes = source.labels, source.classes
        self.load, self.name, self.content, self.undivided = source.load, source.name, source.content, source.undivided
        # Without the image column, so that reading a caption decodes no image.
        self._texts = source.dataset.select_columns([column])

    def __len__(self) -> int:
        return len(self.source)

    def texts(self, index: int) -> list[str]:
        value = self._texts[index][self.column]
        captions: list[str] = [value] if isinstance(value, str) else list(value or [])
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise BadSample(f"its {self.column!r} is missing, empty or no text")
        return captions

    def captions(self) -> Iterator[str]:
        for row in self._texts:
            value = row[self.column]
            yield from (value,) if isinstance(value, str) else (caption for caption in value or () if caption)

    def part(self, indices: np.ndarray) -> PairSubset:
        return PairSubset(self, indices)

    def fingerprint(self) -> str:
        return digest(self.source.fingerprint().encode(), self.column.encode())


def _open_hf(source: Any, data: str) -> Any:
    columns = source.dataset.features
    given = source.options.get("text")
    column = next((name for name in ((given,) if given else TEXT_COLUMNS) if name in columns), None)
    if given and column is None:
        raise DataError(f"{data} has no column {given!r}, only {list(columns)}")
    if column is not None:
        return HuggingFacePairs(source, column)
    if source.labels is None:
        what = f"{data} has no column of captions, only {list(columns)}: name it with hf:name?text=…"
        raise DataError(what)
    return source


def _open_folder(folder: Path, channels: int, split: str, size: int) -> Any:
    """Captions beside the images; a folder without any is one of images alone."""
    source: Any = open_source(folder, channels=channels, split=split, size=size)
    pictures = [folder / path for path in source.paths]
    lonely = [path for path in pictures if not path.with_suffix(".txt").is_file()]
    if len(lonely) == len(pictures):  # other texts, a readme, do not count
        return source
    if lonely:
        what = f"{len(lonely)} of {len(pictures)} images have no caption, the first {lonely[0]}: write"
        raise DataError(f"{what} {lonely[0].with_suffix('.txt').name} beside it, one caption a line, or move it away")
    texts = [[" ".join(line.split()) for line in _lines(path.with_suffix(".txt"))] for path in pictures]
    if not all(texts):
        empty = pictures[texts.index([])].with_suffix(".txt")
        raise DataError(f"{empty}: the caption is missing or empty: write one")
    pairs = PairFiles(folder, list(source.paths), texts, channels, source.labels, source.classes)
    pairs.undivided = source.undivided
    return pairs


def _lines(file: Path) -> list[str]:
    try:
        with open_file(file) as stream:
            return [line for line in stream.read().decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error


def _columns(file: Path, names: list[str]) -> tuple[str, str] | None:
    """Names of the image and the caption column, or None where there is no caption column."""
    # The first name that is known, in any case of letters.
    lower = {name.strip().lower(): name for name in names}
    image = next((lower[name] for name in IMAGE_COLUMNS if name in lower), None)
    text = next((lower[name] for name in TEXT_COLUMNS if name in lower), None)
    if text is None and "path" in lower and file.suffix.lower() != ".jsonl":
        return None
    if image is None or text is None:
        raise DataError(f"{file} has the columns {names}: name two of them 'path' and 'caption'")
    return image, text


def _pairs(
    rows: Iterator[tuple[str, dict[str, Any]]], image: str, text: str
) -> Iterator[tuple[str, str, list[str], str]]:
    """(row's name, path, captions, label or "") of each row."""
    for place, row in rows:
        if not isinstance(row.get(image), str):
            raise DataError(f"{place} has no {image!r}")
        # What is no text counts as an empty caption, which is refused with its place.
        value = row.get(text)
        captions = value if isinstance(value, list) else [value]
        word = "" if row.get("label") is None else str(row["label"]).strip()
        yield place, row[image], [caption if isinstance(caption, str) else "" for caption in captions], word
