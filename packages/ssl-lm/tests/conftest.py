"""Small prepared text for the tests of all three models, importable as `tiny_text`."""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_lm import BERT, GPT, T5, BERTConfig, GPTConfig, T5Config
from ssl_lm.config import RECIPES
from ssl_lm.corpus import open_text
from ssl_lm.shards import META, VERSION, token_type, write_shard
from ssl_lm.tokenizer import fingerprint, save_tokenizer, train_tokenizer
from ssl_testing.conformance import Conformance
from ssl_train.options import RunOptions
from ssl_train.run import train

sys.modules["tiny_text"] = sys.modules[__name__]

VOCABULARY = 400
IDS: Any = {"pad_token_id": 0, "eos_token_id": 3}
"""Special tokens of `tiny_tokenizer`."""
BERT_IDS: Any = {
    **IDS,
    "unk_token_id": 1,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "mask_token_id": 4,
    "first_sentinel": 399,
}
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
    """A folder as `prepare` makes it, with exactly so many windows; a document has 12 lines."""
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
    meta = {"format": VERSION, "vocab_size": VOCABULARY, "eos_token_id": 3, "dtype": "uint16"}
    meta |= {"tokenizer": fingerprint(tokenizer), "source": "tiny", "left_out": [], "splits": splits}
    (folder / META).write_text(json.dumps(meta))
    return folder


def gpt_config(**changes: Any) -> GPTConfig:
    """A small GPT for `tiny_tokenizer`."""
    sizes: Any = {"vocab_size": VOCABULARY, "context": 24, "dim": 32, "depth": 2, "heads": 2}
    return GPTConfig(**{**IDS, **sizes, **changes})


def bert_config(**changes: Any) -> BERTConfig:
    """A small BERT for `tiny_tokenizer`."""
    sizes: Any = {"vocab_size": VOCABULARY, "context": 24, "dim": 16, "depth": 1, "heads": 2}
    return BERTConfig(**{**BERT_IDS, **sizes, **changes})


def t5_config(**changes: Any) -> T5Config:
    """A small T5 for `tiny_tokenizer`."""
    sizes: Any = {"vocab_size": VOCABULARY, "context": 24, "dim": 16, "depth": 1, "decoder_depth": 1, "heads": 2}
    return T5Config(**{**IDS, **sizes, "head_dim": 8, "hidden": 24, "first_sentinel": 399, **changes})


RUN = gpt_config(epochs=12, batch_size=8, base_lr=0.16, warmup_epochs=1, precision="fp32")
"""Config of the `run` fixture."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a GPT trained for a few seconds; its text lies beside it in `data`."""
    out = tmp_path_factory.mktemp("runs") / "run"
    data = write_prepared(out.parent / "data", RUN.window, RUN.stride)
    recipe = dataclasses.replace(RECIPES["gpt"], settle=None)
    train(recipe, RUN, data=data, out=out, options=RunOptions(workers=0, device="cpu"))
    return out


@pytest.fixture(scope="session")
def gpt(run: Path) -> GPT:
    return GPT.from_pretrained(run)


@pytest.fixture
def untrained() -> dict[str, Any]:
    """BERT, with and without whole words, and T5, with new weights."""
    torch.manual_seed(0)
    models = {"bert": BERT(bert_config()), "whole words": BERT(bert_config(whole_words=True)), "t5": T5(t5_config())}
    for method in models.values():
        method.eval().tokenizer = tiny_tokenizer()
    return models


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
    folders = ()

    def write_data(self, folder):
        return write_prepared(folder, self.config.window, self.config.stride)
