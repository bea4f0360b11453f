"""Arguments of the commands that only ssl-lm has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ssl_core.method import Verb


@dataclass(frozen=True)
class Prepare:
    """Turn text into what `train --data` reads: a folder of tokens. The same command again goes on where it stopped."""

    data: tyro.conf.Positional[str]
    """a text file, a .jsonl file with a field `text`, a folder of such files, or hf:NAME"""
    out: str | None = None
    """folder to write; the data's name and -tokens by default"""
    tokenizer: str = "train:8000"
    """train:SIZE trains one on the text; else a folder with tokenizer.json, that file, or a Hub id such as gpt2"""
    algorithm: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """what train:SIZE trains: byte-level BPE (GPT-2's), WordPiece (BERT's) or Unigram (T5's)"""
    held_out: float = 0.05
    """share that becomes the test part, where the data has none"""
    workers: int | None = None
    """processes; the cores here by default"""


@dataclass(frozen=True)
class Generate:
    """Continue a text and write it to the terminal as it comes."""

    weights: tyro.conf.Positional[str]
    """run folder or Hub id"""
    prompts: tyro.conf.Positional[tuple[str, ...]] = ("",)
    """texts to continue; an empty one starts a new text"""
    tokens: int = 200
    """most tokens to write"""
    temperature: float = 0.8
    """0 takes the likeliest token; lower is safer, higher is bolder"""
    top_k: int | None = None
    """draw among this many likeliest tokens"""
    top_p: float | None = 0.95
    """draw among the fewest tokens that have this share of the probability"""
    stop: tuple[str, ...] = ()
    """end a text before any of these strings"""
    seed: int | None = None
    """fixes what is drawn"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


# ---------------------------------------------------------------- BERT


# ---------------------------------------------------------------- T5


# ---------------------------------------------------------------- what the command line lists

VERBS = {
    "prepare": Verb(arguments="ssl_lm.verbs:Prepare", run="ssl_lm.prepare:run"),
    "generate": Verb(arguments="ssl_lm.verbs:Generate", run="ssl_lm.generate:run", method="gpt"),
}
