"""Small prepared text for the tests of all three models, importable as `tiny_text`."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from ssl_lm.corpus import open_text
from ssl_lm.shards import META, VERSION, token_type, write_shard
from ssl_lm.tokenizer import fingerprint, save_tokenizer, train_tokenizer
from ssl_testing.conformance import Conformance

sys.modules["tiny_text"] = sys.modules[__name__]

VOCABULARY = 400
IDS = {"pad_token_id": 0, "eos_token_id": 3}
"""Of the tokenizer below; unk 1, cls 2, sep 3, mask 4, first sentinel 399."""
NAMES = "alpha beta gamma delta value index total result left right width height".split()
_HOME = Path(tempfile.gettempdir(), f"ssl-lm-tests-{os.getpid()}")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)


def write_text(lines: int = 200, seed: int = 0) -> str:
    """Assignments among a few names: what follows is partly known."""
    rng = np.random.default_rng(seed)
    text = []
    for _ in range(lines):
        a, b, c = (NAMES[i] for i in rng.integers(len(NAMES), size=3))
        text.append(
            f"{a} = {b} + {c} * {rng.integers(100)}" if rng.random() < 0.7 else f"def {a}({b}):\n    return {c}"
        )
    return "\n".join(text) + "\n"


@cache
def tiny_tokenizer():
    tokenizer = train_tokenizer([write_text()], VOCABULARY)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def write_prepared(folder: Path, window: int, stride: int, windows: int = 64, held_out: int = 8) -> Path:
    """A folder as `prepare` makes it, of exactly so many windows for training and for test; a document every 12 lines."""
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    save_tokenizer(tokenizer, folder)
    splits = {}
    for seed, (split, number) in enumerate({"train": windows, "test": held_out}.items()):
        wanted, parts, ends, count, size = (number - 1) * stride + window, [], [], 0, 0
        while count < wanted:
            text = write_text(12, seed=1000 * seed + len(parts))
            parts.append(np.array([*tokenizer.encode(text).ids, 3], token_type(VOCABULARY)))
            count, size = count + len(parts[-1]), size + len(text)
            ends.append((count, size))
        ends = [end for end in ends if end[0] <= wanted]
        tokens = np.concatenate(parts)[:wanted]
        array = np.array(ends, np.int64).reshape(-1, 2)
        splits[split] = [write_shard(folder / f"{split}-00000", tokens, array, size, 3, fingerprint(tokenizer))]
    meta = {
        "format": VERSION, "vocab_size": VOCABULARY, "eos_token_id": 3, "dtype": "uint16",
        "tokenizer": fingerprint(tokenizer), "source": "tiny", "left_out": [], "splits": splits,
    }  # fmt: skip
    (folder / META).write_text(json.dumps(meta))
    return folder


def open_windows(data, *, config, split="train"):
    """A recipe's `source`: 64 windows where no data is given."""
    if data is None:
        data = _HOME / f"{config.window}-{config.stride}"
        if not data.exists():
            write_prepared(data, config.window, config.stride)
    return open_text(data, config=config, split=split)


class TextConformance(Conformance):
    """The suite for a model that reads text."""

    source = "tiny_text:open_windows"
    noiseless = {"dropout": 0.0}

    def write_data(self, folder):
        return write_prepared(folder, self.config.window, self.config.stride)


__all__ = ["IDS", "VOCABULARY", "TextConformance", "tiny_tokenizer", "write_prepared", "write_text"]
