"""Byte-level BPE by a table of words. Imports no torch.

GPT-2's BPE cuts a text into words by a pattern and merges inside words only, so a word always has
the same tokens. Most words of a text were seen before, and looking them up is several times faster
than merging them again (docs/benchmarks.md). The pattern here is exact for ASCII; the library
handles other text.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

import numpy as np

PATTERN = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
"""GPT-2's, with ASCII's letters and digits."""
MOST = 2**20
"""Words in the table; a full one is emptied."""


def applies(tokenizer: Any) -> bool:
    """Whether `tokenizer` is GPT-2's kind: byte-level BPE by that pattern.

    It has no normalizer, and all words added to it are special tokens.
    """
    parts = json.loads(tokenizer.to_str())
    cut = parts["pre_tokenizer"] or {}
    # each of these would make the tokens of a word depend on more than the word
    return (
        parts["normalizer"] is None
        and parts["model"]["type"] == "BPE"
        and not parts["model"].get("dropout")
        and cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and not cut["add_prefix_space"]
        and all(token["special"] for token in parts["added_tokens"])
    )


class WordTable(dict[str, list[int]]):
    """Tokens of the words seen so far."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= MOST:
            self.clear()
        self[word] = ids = self.tokenizer.encode(word, add_special_tokens=False).ids
        return ids

    def tokens(self, text: str) -> np.ndarray:
        """int64 (n,) of an ASCII text, the same as the tokenizer's."""
        return np.fromiter(chain.from_iterable(map(self.__getitem__, PATTERN.findall(text))), np.int64)
