"""Texts to token ids: CLIP's byte-level BPE (section 2.4 of the paper, arXiv 2103.00020).

A text is cleaned, split into words, each word cut by merges that were learned, and put between a
start and an end token. The merges are applied by the `tokenizers` package; vocabularies come from
tokenizer.json, from vocab.json and merges.txt, or from OpenAI's `bpe_simple_vocab_16e6.txt.gz`.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_clip.config import CLIPConfig
from ssl_core.config import ConfigError
from ssl_core.errors import InputError

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
START, END = "<|startoftext|>", "<|endoftext|>"
NAMES = {"start": (START, "<start_of_text>"), "end": (END, "<end_of_text>")}
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
OPENAI_MERGES = 49152 - 256 - 2
SUFFIX = "</w>"


class TextError(InputError, ValueError):
    """A text that cannot be used: empty, or longer than the context."""


def clean(text: str) -> str:
    """OpenAI's cleaning but for `ftfy`: HTML entities, blanks, composed letters, lower case."""
    text = html.unescape(html.unescape(text))
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


class Tokenizer:
    """`tokenizer(texts, context_length)` -> int64 ids (b, t): start, words, end, zeros.

    `cleaned` says that texts go through `clean` first, as OpenAI's; a tokenizer.json of
    transformers cleans by its own rules. A caption cannot contain a special token: `<|endoftext|>`
    in it is plain text.
    """

    def __init__(self, backend: Any, *, cleaned: bool) -> None:
        vocabulary = backend.get_vocab()
        ids = {role: next((vocabulary[n] for n in names if n in vocabulary), None) for role, names in NAMES.items()}
        if ids["start"] is None or ids["end"] is None:
            raise ConfigError(f"the tokenizer has no start and end of text ({START}, {END}): it is not CLIP's")
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # in a caption they are plain text
        self.backend, self.cleaned = backend, cleaned
        self.start, self.end, self.size = ids["start"], ids["end"], 1 + max(vocabulary.values())

    def __call__(self, texts: Sequence[str], context_length: int, *, truncate: bool = False) -> Tensor:
        """Ids (b, context_length). `truncate` cuts what is too long and keeps the end token.

        Raises TextError for an empty text, and without `truncate` for one that is too long.
        """
        # A row for each text, zeros behind its end token.
        rows = np.zeros((len(texts), context_length), np.int64)
        for row, text, words in zip(rows, texts, self.words(texts), strict=True):
            room = context_length - 2
            if not words:
                raise TextError(f"the text {text!r} is empty")
            if len(words) > room and not truncate:
                reason = f"the text {text[:60]!r}… has {len(words)} tokens, {room} fit: shorten it, or allow --truncate"
                raise TextError(reason)
            row[: len(words[:room]) + 2] = [self.start, *words[:room], self.end]
        return torch.from_numpy(rows)

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without start and end."""
        texts = [clean(text) for text in texts] if self.cleaned else list(texts)
        return [encoding.ids for encoding in self.backend.encode_batch(texts, add_special_tokens=False)]

    def check(self, config: CLIPConfig) -> None:
        """ConfigError unless the text tower of `config` can read these ids."""
        if self.size > config.vocab_size:
            raise ConfigError(f"vocab_size = {config.vocab_size}: the tokenizer has {self.size} tokens")
        if config.text_pool == "eos" and self.end != config.eos_token_id:
            raise ConfigError(f"eos_token_id = {config.eos_token_id}: the tokenizer's end of text is {self.end}")

    def fingerprint(self) -> str:
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write the two files that transformers reads as a CLIPTokenizer."""
        (folder / FILE).write_text(self.backend.to_str(), encoding="utf-8")
        start, end = (self.backend.id_to_token(token) for token in (self.start, self.end))
        tokens = {"bos_token": start, **dict.fromkeys(("eos_token", "pad_token", "unk_token"), end)}
        settings = {"tokenizer_class": "CLIPTokenizer", **tokens, "cleaned": self.cleaned}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def for_training(cls, config: CLIPConfig, source: Any) -> Tokenizer:
        """The config's tokenizer, or one trained on the captions of `source`."""
        if config.tokenizer is None:
            return cls.trained(source.captions(), config.vocab_size)
        path = Path(config.tokenizer).expanduser()
        found = cls.find(path) if path.is_dir() else cls.read(path)
        if found is None:
            raise ConfigError(f"tokenizer = {config.tokenizer!r}: the folder holds no {FILE} and no vocab.json")
        return found

    @classmethod
    def trained(cls, captions: Iterable[str], vocab_size: int) -> Tokenizer:
        """BPE of at most `vocab_size` tokens, trained on cleaned captions.

        The 256 bytes twice (inside and at the end of a word), merges, and as the last two ids the
        start and end token, however few merges there are.
        """
        if vocab_size < 514:
            raise ConfigError(f"vocab_size = {vocab_size}: bytes, start and end alone are 514 tokens")
        package = _tokenizers()
        options = {"vocab_size": vocab_size, "end_of_word_suffix": SUFFIX, "show_progress": False}
        alphabet = package.pre_tokenizers.ByteLevel.alphabet()
        trainer = package.trainers.BpeTrainer(initial_alphabet=alphabet, **options)
        backend = _backend({}, [])
        backend.train_from_iterator((clean(caption) for caption in captions), trainer)
        # Only the merges are taken over, so that the ids come in OpenAI's order.
        merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]][: vocab_size - 514]
        return cls._of_merges(merges, start=vocab_size - 2)

    @classmethod
    def find(cls, folder: Path) -> Tokenizer | None:
        """The tokenizer whose files lie in `folder`, or None; ConfigError for damaged files."""
        for name in (FILE, "vocab.json"):
            if (folder / name).is_file():
                return cls.read(folder / name)
        return None

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """A tokenizer.json, a vocab.json beside merges.txt, or OpenAI's merges (.txt or .txt.gz).

        Raises ConfigError when it cannot be read.
        """
        try:
            if path.name.endswith((".txt", ".txt.gz")):
                return cls._from_merges(path)
            if path.name == "vocab.json":
                lines = (path.parent / "merges.txt").read_text(encoding="utf-8").splitlines()
                merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
                vocabulary = json.loads(path.read_text(encoding="utf-8"))
                return cls(_backend(vocabulary, merges), cleaned=True)
            # Whether its texts are cleaned first, only our own folders say.
            settings = path.parent / SETTINGS
            stored = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
            backend = _tokenizers().Tokenizer.from_file(str(path))
        except ConfigError:
            raise
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ConfigError(f"{path} is no tokenizer that can be read: {error}") from error
        return cls(backend, cleaned=stored.get("cleaned") is True)

    @classmethod
    def _from_merges(cls, path: Path) -> Tokenizer:
        opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
        with opened as stream:
            lines = stream.read().decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 1 + OPENAI_MERGES]]  # the rest is unused
        if len(merges) < OPENAI_MERGES or any(len(pair) != 2 for pair in merges):
            raise ConfigError(f"{path} does not hold OpenAI's {OPENAI_MERGES} merges")
        return cls._of_merges(merges, start=512 + len(merges))

    @classmethod
    def _of_merges(cls, merges: Sequence[tuple[str, ...]], start: int) -> Tokenizer:
        """Ids in OpenAI's order: bytes, bytes at the end of a word, merges. `start` is START's."""
        # GPT-2's character for each byte: printable ones as they are, 256 and up for the others.
        symbols = sorted(_tokenizers().pre_tokenizers.ByteLevel.alphabet())
        tokens = [*symbols, *(symbol + SUFFIX for symbol in symbols), *("".join(pair) for pair in merges)]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        return cls(_backend({**vocabulary, START: start, END: start + 1}, merges), cleaned=True)


def _tokenizers() -> Any:
    # Set before its threads start: processes that load data are forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers


def _backend(vocabulary: dict[str, int], merges: Sequence[tuple[str, ...]]) -> Any:
    """The `tokenizers` object that splits and merges as OpenAI's code does after its cleaning."""
    package = _tokenizers()
    unknown = END if END in vocabulary else None
    model = package.models.BPE(vocabulary, list(merges), end_of_word_suffix=SUFFIX, unk_token=unknown)
    backend = package.Tokenizer(model)
    normalizers, split = package.normalizers, package.pre_tokenizers
    blanks = normalizers.Replace(package.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    # Text is normalised, split into words, and each word's bytes are merged.
    words = split.Split(package.Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = split.Sequence([words, split.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = package.decoders.ByteLevel()
    if END in vocabulary:  # a vocabulary that is to be trained has none yet
        backend.add_special_tokens([START, END])
        backend.post_processor = package.processors.RobertaProcessing(
            (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
        )
    return backend
