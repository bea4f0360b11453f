"""Tokens on disk: shards that are mapped into memory. Imports no torch.

`train-00003.bin` is a header of 256 int32 and then the tokens, uint16 where the vocabulary allows
it, else uint32. `train-00003.idx` holds an int64 pair for every document that ends in the shard:
the tokens and the bytes of text up to its end. `meta.json` lists the shards of every split with
their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.errors import InputError

META = "meta.json"
MAGIC, VERSION = int.from_bytes(b"sslm", "little"), 1
HEADER = 256 * 4


class ShardError(InputError):
    """Prepared data that cannot be used; the message says what to do."""


def token_type(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest of the two types that holds every token."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


def header(tokens: int, itemsize: int, eos: int, fingerprint: str) -> np.ndarray:
    """What a shard says of itself, int32 (256,)."""
    numbers = np.zeros(256, dtype=np.uint32)
    words = [int(fingerprint[:8], 16), int(fingerprint[8:], 16)]
    numbers[:8] = [MAGIC, VERSION, tokens & 0xFFFFFFFF, tokens >> 32, itemsize, eos, *words]
    return numbers.view(np.int32)


def write_shard(
    file: Path, tokens: np.ndarray, ends: np.ndarray, size: int, eos: int, fingerprint: str
) -> dict[str, Any]:
    """Write `file`.bin and .idx, each whole or not at all; return the record for meta.json.

    tokens (n,), ends int64 (documents, 2) of tokens and bytes, `size` bytes of text in all.
    """
    # written beside and renamed, with sums of what was written
    head = header(len(tokens), tokens.itemsize, eos, fingerprint)
    sums = {}
    for suffix, parts in ((".bin", (head, tokens)), (".idx", (ends,))):
        total = hashlib.sha256()
        staged = file.with_suffix(f"{suffix}.tmp")
        with staged.open("wb") as stream:
            for part in parts:
                total.update(part.data if part.size else b"")
                stream.write(part.data if part.size else b"")
        os.replace(staged, file.with_suffix(suffix))
        sums[suffix] = total.hexdigest()
    return {"name": file.name, "tokens": len(tokens), "documents": len(ends), "bytes": size, "sha256": sums}


def is_whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the files of a shard are there and have the sums of its record."""
    for suffix, expected in record["sha256"].items():
        file = (folder / record["name"]).with_suffix(suffix)
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                return False
    return True


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a prepared folder. Raises ShardError if it is missing or damaged."""
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        if meta["format"] != VERSION or not isinstance(meta["splits"], dict):
            raise ValueError("it is of another version")
    except FileNotFoundError:
        raise ShardError(f"{folder} is not prepared, or not to the end: run `ssl-lm prepare` (again)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{folder / META} is damaged ({error}): prepare the data again") from error
    return meta


class Shards:
    """The tokens of one split, one long array in several files."""

    def __init__(self, folder: Path, split: str) -> None:
        """Raises ShardError if a shard or meta.json is missing, damaged or of other data."""
        meta = read_meta(folder)
        self.folder, self.records = folder, meta["splits"].get(split, [])
        self.dtype = np.dtype(meta["dtype"])
        self.fingerprint: str = meta["tokenizer"]
        self.starts = np.cumsum([0, *(record["tokens"] for record in self.records)])
        self._maps: list[np.ndarray] | None = None
        ends, shift = [], np.zeros(2, dtype=np.int64)
        for record in self.records:
            self._check(record, meta["eos_token_id"])
            ends.append(np.fromfile((folder / record["name"]).with_suffix(".idx"), np.int64).reshape(-1, 2) + shift)
            shift += [record["tokens"], record["bytes"]]
        self.bytes = int(shift[1])
        self.ends = np.concatenate(ends) if ends else np.zeros((0, 2), np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}  # every process maps the files anew

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens start … end - 1, int64."""
        if self._maps is None:
            self._maps = [self._map(record) for record in self.records]
        # a stretch of tokens may reach over several shards
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < end:
            offset = start - int(self.starts[first])
            parts.append(self._maps[first][offset : offset + end - start])
            start += len(parts[-1])
            first += 1
        return np.concatenate(parts).astype(np.int64)

    def _map(self, record: dict[str, Any]) -> np.ndarray:
        if not record["tokens"]:
            return np.zeros(0, self.dtype)  # an empty file cannot be mapped
        file = (self.folder / record["name"]).with_suffix(".bin")
        return np.memmap(file, self.dtype, "r", HEADER, record["tokens"])

    def documents(self, start: int, end: int) -> np.ndarray:
        """Number of each token's document, int64 (end - start,), 0 for the first."""
        # the number of documents that end before or at each token
        number = np.searchsorted(self.ends[:, 0], np.arange(start, end), side="right")
        return number - number[0]

    def _check(self, record: dict[str, Any], eos: int) -> None:
        """Raises ShardError unless the files of a record are there, whole and of this tokenizer."""
        file = (self.folder / record["name"]).with_suffix(".bin")
        expected = HEADER + record["tokens"] * self.dtype.itemsize
        index = file.with_suffix(".idx")
        if not file.is_file() or not index.is_file():
            raise ShardError(f"{file} or its .idx is missing: run the `ssl-lm prepare` of {self.folder} again")
        if file.stat().st_size != expected or index.stat().st_size != 16 * record["documents"]:
            found = f"{file} has {file.stat().st_size:,} bytes of {expected:,}, or its .idx is cut short"
            raise ShardError(f"{found}: run the `ssl-lm prepare` of {self.folder} again")
        # the header of each shard repeats what meta.json says of the tokenizer
        says = header(record["tokens"], self.dtype.itemsize, eos, self.fingerprint)
        if not np.array_equal(np.fromfile(file, np.int32, 256), says):
            raise ShardError(f"{file} belongs to other data or another tokenizer: prepare {self.folder} again")
