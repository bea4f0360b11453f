"""Sources of text: a prepared folder, raw text, or the source of Python's standard library."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock

from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_lm import tokenizer as tokens
from ssl_lm.config import LMConfig
from ssl_lm.prepare import prepare_splits
from ssl_lm.shards import META, Shards
from ssl_lm.texts import CSV, LINES, Piece, decode, kind, list_files, named_column, text_column
from ssl_train.asked import is_given
from ssl_train.data.files import class_names, open_file, split_folder
from ssl_train.data.names import digest, number_labels, read_table

STDLIB_TOKENIZER = "train:2048"
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
"""Folders that `stdlib` leaves out: tests, which some installations lack, and tables."""
HELD_OUT = 12
"""One module in so many is test text."""


def open_text(data: Any, *, config: Any, split: str = "train") -> Any:
    """Windows of prepared text, or raw texts that a model has yet to tokenise (`TextModel.attach`).

    `data` is one of:
    - a list of strings in Python, for evaluations;
    - None or "stdlib": the source of the running Python's standard library; one module in twelve is
      test text;
    - a folder that `ssl-lm prepare` made;
    - for evaluations, with a document as a sample: a text file; a folder of text files, labelled by
      the first sub-folder if there are two or more, with the splits of `ssl_train.data.files`; a
      .csv, .tsv or .jsonl with a column `text`, or one that "file?text=COLUMN" names, and perhaps
      `label`.

    Raises DataError, which says what to do.
    """
    if isinstance(data, list) and data and all(isinstance(text, str) for text in data):
        if split == "test":
            raise NoTestSplit("a list of strings has no test split: give the test texts with test=")
        return Texts(data, [f"texts[{i}]" for i in range(len(data))], None, None)
    name, column = (data, None) if data is None or is_given(data) else named_column(str(data))
    path = _path(name)
    return Windows(path, split, config) if (path / META).is_file() else _raw(path, split, column)


def settle(config: LMConfig, data: Any) -> Any:
    """`config` with the vocabulary of the data's tokenizer. Raises DataError for raw text."""
    folder = _path(data)
    if not (folder / META).is_file():
        does = f"`ssl-lm train --data {data}` does it first, `ssl-lm prepare {data}` does it alone"
        raise DataError(f"{data} is not prepared: {does}")
    return tokens.settle(config, tokens.load_tokenizer(folder))


def _path(data: Any) -> Path:
    if is_given(data):
        what = f"text to train on is read from files, and data is of type {type(data).__name__}:"
        raise DataError(f"{what} write the texts into a folder and give its name, data='texts/'")
    path = stdlib() if data is None or str(data) == "stdlib" else Path(data).expanduser()
    if not path.exists():
        raise DataError(f"there is no {str(data)!r}: give a folder that `ssl-lm prepare` made")
    return path


class Windows:
    """Windows of `config.window` tokens, one every `config.stride` tokens, of the texts of a split.

    Texts stand one behind the other, each with an eos token at its end.
    """

    labels = classes = None
    prepared = True
    """made by `ssl-lm prepare`, so with a tokenizer and splits, unlike raw text"""

    def __init__(self, folder: Path, split: str, config: LMConfig) -> None:
        """Raises DataError for no text, or less than a window to train on; ShardError if
        damaged."""
        self.shards, self.folder, self.split = Shards(folder, split), folder, split
        self.window, self.stride = config.window, config.stride
        self.tokenizer = tokens.load_tokenizer(folder)
        if not len(self.shards):
            raise DataError(f"{folder} has no {split} text")
        if len(self.shards) < self.window and split == "train":
            found = (
                f"the {split} text of {folder} has {len(self.shards):,} tokens, fewer than one sample of {self.window}"
            )
            raise DataError(f"{found}: give more text or a smaller --context")

    def __len__(self) -> int:
        return 1 + max(0, len(self.shards) - self.window) // self.stride

    def load(self, index: int) -> dict[str, Any]:
        """{"input_ids", "documents"}, both int64 (window,): tokens and the number of their
        document.

        Test text that is shorter than a window is one sample.
        """
        start = index * self.stride
        end = min(start + self.window, len(self.shards))  # only test text may end early
        return {
            "input_ids": torch.from_numpy(self.shards.read(start, end)),
            "documents": torch.from_numpy(self.shards.documents(start, end)),
        }

    def name(self, index: int) -> str:
        return f"{self.split} tokens {index * self.stride:,} to {index * self.stride + self.window - 1:,}"

    def fingerprint(self) -> str:
        # the sums in meta.json stand for the tokens, which need not be read
        sums = [record["sha256"][suffix].encode() for record in self.shards.records for suffix in (".bin", ".idx")]
        return digest(*sums, np.array([self.window, self.stride]))

    def texts(self) -> Iterator[tuple[np.ndarray, int]]:
        """(tokens, bytes of text) of every document, in order; the last may lack an eos token."""
        # a held-out end of a file is a last document without an eos token
        ends = [*self.shards.ends.tolist(), [len(self.shards), self.shards.bytes]]
        start, size = 0, 0
        for end, total in ends:
            if end > start:
                yield self.shards.read(start, end), total - size
            start, size = end, total


@dataclass(frozen=True, eq=False)
class Texts:
    """Raw texts, which have no tokens until a model gives them its tokenizer and config."""

    raw: Sequence[str]
    names: Sequence[str]
    labels: np.ndarray | None
    classes: list[str] | None
    tokenizer: Any = None
    config: LMConfig | None = None
    prepared: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.raw)

    def tokenised(self, tokenizer: Any, config: LMConfig) -> Texts:
        """The same as the model of this tokenizer and config reads them."""
        return replace(self, tokenizer=tokenizer, config=config)

    def load(self, index: int) -> dict[str, Any]:
        """{"input_ids": int64 (n ≤ context,)}. Raises BadSample for a text without tokens."""
        if self.config is None:
            raise DataError("raw text is for evaluations: to train on it, run `ssl-lm prepare` first")
        ids = self._ids(self.raw[index])
        if not ids:
            raise BadSample("the text has no tokens")
        return {"input_ids": torch.tensor(ids[: self.config.context])}

    def name(self, index: int) -> str:
        return self.names[index]

    def fingerprint(self) -> str:
        return digest(*(text.encode() for text in self.raw), self.labels)

    def texts(self) -> Iterator[tuple[np.ndarray, int]]:
        """(tokens and an eos token, bytes of text) of every text, once it is tokenised."""
        assert self.config is not None
        end = [] if self.config.eos_token_id is None else [self.config.eos_token_id]
        for text in self.raw:
            yield np.array(self._ids(text) + end, dtype=np.int64), len(text.encode())

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def _raw(path: Path, split: str, column: str | None) -> Texts:
    if path.is_dir():
        return _folder(split_folder(path, split))
    if split == "test":
        raise NoTestSplit(f"{path} has no test split: name the test data's own file")
    if kind(path) in (*CSV, LINES):
        return _table(path, column)
    text = _read(path)
    if not text.strip():
        raise DataError(f"{path} is empty")
    return Texts([text], [path.name], None, None)


def _table(file: Path, given: str | None) -> Texts:
    """A row is a sample: its text, and perhaps its `label`."""
    columns, rows = read_table(file)
    column = text_column([name for name in columns if name != "label"], str(file), given)
    texts, words = [], []
    for place, row in rows:
        if row.get(column) is None:  # a line of JSON may lack it, or have null
            raise DataError(f"{place} has no `{column}`")
        texts.append(str(row[column]))
        words.append(str(row.get("label", "") or "").strip())
    if not texts:
        raise DataError(f"{file} has no row with a `{column}`")
    labels, classes = number_labels(words)
    return Texts(texts, [f"{file.name}[{i}]" for i in range(len(texts))], labels, classes)


def _folder(folder: Path) -> Texts:
    """A file is a sample; the first sub-folders are its labels, if there are two or more."""
    files = list_files(folder)
    texts = [_read(file) for file in files]
    names = [file.relative_to(folder).as_posix() for file in files]
    tops = class_names(folder, names)
    labels, classes = number_labels(tops) if len(set(tops) - {""}) > 1 else (None, None)
    return Texts(texts, names, labels, classes)


def _read(file: Path) -> str:
    with open_file(file) as stream:
        return decode(stream.read(), str(file))


def stdlib() -> Path:
    """The prepared folder of the built-in corpus; the first call makes it.

    It lies in the user's cache or in SSL_LM_CACHE. The name of a module alone decides whether it is
    test text.
    """
    sources = modules()
    # another version of Python has other sources: its own folder
    key = digest(repr([(name, file.stat().st_size) for name, file in sources]).encode())
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ssl-lm"
    cache = Path(os.environ.get("SSL_LM_CACHE", default))
    folder = cache / f"stdlib-{platform.python_version()}-{key}"
    if (folder / META).is_file():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{cache} cannot be made ({error}): name a folder in SSL_LM_CACHE") from error
    # processes that start together prepare the corpus once
    with FileLock(cache / ".lock"):
        splits: dict[str, list[Piece]] = {"train": [], "test": []}
        for name, file in sources:
            # by the name's hash, so that other modules do not change the split
            held_out = hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0
            splits["test" if held_out else "train"].append(Piece(str(file), 0, file.stat().st_size))
        prepare_splits(splits, folder, source="stdlib", tokenizer=STDLIB_TOKENIZER, workers=0)
    return folder


def modules() -> list[tuple[str, Path]]:
    """(top-level module, file) of every source file of the standard library, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).parts
        if not LEFT_OUT.intersection(parts) and file.stat().st_size:
            found.append((parts[0].removesuffix(".py"), file))
    if not found:
        raise DataError(f"there is no source in {root}: give --data")
    return sorted(found)
