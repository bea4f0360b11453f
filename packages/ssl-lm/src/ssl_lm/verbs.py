"""Arguments of the commands that only ssl-lm has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ssl_core.method import Verb


@dataclass(frozen=True)
class Prepare:
    """Turn text into a folder of tokens, which `train --data` takes too. Rerun a stopped command to
    resume."""

    data: tyro.conf.Positional[str]
    """a text file, a table (.csv, .tsv, .jsonl, .parquet), a folder of such files, or hf:NAME;
    FILE?text=NAME names the column of texts if it is not `text`"""
    out: str | None = None
    """folder to write; the data's name and -tokens by default"""
    tokenizer: str = "train:8000"
    """train:SIZE trains one on the text; else a tokenizer.json, its folder or a Hub id (gpt2)"""
    algorithm: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """what train:SIZE trains: byte-level BPE (GPT-2's), WordPiece (BERT's) or Unigram (T5's)"""
    held_out: float = 0.05
    """share that becomes the test part, if the data has none"""
    workers: int | None = None
    """processes; by default one for each core"""


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
    """0 takes the most likely token; lower is safer, higher is bolder"""
    top_k: int | None = None
    """draw among this many most likely tokens"""
    top_p: float | None = 0.95
    """draw among the fewest tokens that have this share of the probability"""
    stop: tuple[str, ...] = ()
    """end a text before any of these strings"""
    seed: int | None = None
    """fixes what is drawn"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


# ---------------------------------------------------------------- BERT


@dataclass(frozen=True)
class Fill:
    """Name the most probable words for every [MASK] of a text."""

    weights: tyro.conf.Positional[str]
    """run folder or Hub id of a BERT"""
    texts: tyro.conf.Positional[tuple[str, ...]]
    """texts with [MASK] where a word is missing: "The [MASK] brown fox" """
    top_k: int = 5
    """words for each"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


# ---------------------------------------------------------------- T5


@dataclass(frozen=True)
class Text2Text:
    """Answer a text: translate it, summarise it, or whatever the model was taught."""

    weights: tyro.conf.Positional[str]
    """run folder or Hub id of a T5"""
    texts: tyro.conf.Positional[tuple[str, ...]]
    """texts with a prefix that the model was taught ("translate English to French: …"), or with a
    missing span ("The <extra_id_0> walks")"""
    task: Literal["translate", "summarize", "sentiment", "grammar", "question"] | None = None
    """put the texts in the form of this task of T5 v1.0"""
    language: str = "French"
    """what --task translate translates to: French, German, Romanian"""
    context: str | None = None
    """the text in which the answer to --task question is found"""
    beams: int = 4
    """hypotheses of the beam search; 1 takes the most likely token"""
    tokens: int = 64
    """most tokens of an answer"""
    length_penalty: float = 1.0
    """a score is divided by this power of the length: above 1 favours longer answers, below 1
    shorter ones"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


# ---------------------------------------------------------------- what the command line lists

VERBS = {
    "prepare": Verb(arguments="ssl_lm.verbs:Prepare", run="ssl_lm.prepare:run"),
    "generate": Verb(arguments="ssl_lm.verbs:Generate", run="ssl_lm.generate:run", methods=("gpt",)),
    "fill": Verb(arguments="ssl_lm.verbs:Fill", run="ssl_lm.fill:run", methods=("bert",)),
    "text2text": Verb(arguments="ssl_lm.verbs:Text2Text", run="ssl_lm.text2text:run", methods=("t5",)),
}
