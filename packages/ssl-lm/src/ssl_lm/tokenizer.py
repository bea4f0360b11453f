"""The tokenizer: its files, its training, and what a config takes from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_core.hub.remote import resolve
from ssl_lm.config import LMConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE, FACTS = "tokenizer.json", "tokenizer_config.json"

ROLES: dict[str, tuple[str, ...]] = {
    "pad_token_id": ("[PAD]", "<pad>", "<|padding|>"),
    "unk_token_id": ("[UNK]", "<unk>"),
    "cls_token_id": ("[CLS]", "<s>"),
    "sep_token_id": ("[SEP]", "</s>"),
    "mask_token_id": ("[MASK]", "<mask>"),
    "eos_token_id": ("<|endoftext|>", "</s>", "[SEP]"),
    "first_sentinel": ("<extra_id_0>",),
}
"""Spellings of each role's token in the tokenizers of GPT-2, BERT, RoBERTa and T5, and in ours."""
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first ids of the tokenizers trained here."""
SENTINELS = 100
"""T5's sentinels <extra_id_99> … <extra_id_0>, the last ids of the tokenizers trained here."""
ROWS_TO_SPARE = 128
"""Rows that an embedding may have beyond the tokens: T5's has 32,128 for 32,100."""

LONGEST_WORD = 1000
"""Characters of a word, or of white space, that a tokenizer is trained on.

The time for a word grows with the square of its length. Text has longer ones by accident, such as
data or a line of dashes.
"""
LONG = re.compile(rf"(?<!\S)\S{{{LONGEST_WORD + 1},}}|(?<!\s)\s{{{LONGEST_WORD + 1},}}")

Algorithm = Literal["bpe", "wordpiece", "unigram"]


def settled(config: LMConfig) -> int:
    """The size of the vocabulary. Raises ConfigError if the data has yet to decide it."""
    if config.vocab_size is None:
        raise ConfigError("vocab_size = None: the data's tokenizer decides it. Give --data, or a number")
    return config.vocab_size


def settle(config: LMConfig, tokenizer: Tokenizer) -> LMConfig:
    """`config` with the vocabulary's size and the special tokens that it leaves open.

    Raises ConfigError if it contradicts the tokenizer.
    """
    size, changes = tokenizer.get_vocab_size(), {}
    if config.vocab_size is None:
        changes["vocab_size"] = size
    elif not 0 <= config.vocab_size - size <= ROWS_TO_SPARE:  # a few rows more than tokens, never fewer
        hint = f"Give --vocab-size {size}, or prepare the data with the tokenizer of the model"
        raise ConfigError(f"vocab_size = {config.vocab_size}: the data's tokenizer has {size} tokens. {hint}")
    for field, token in special_ids(tokenizer).items():
        stored = getattr(config, field, token)
        if stored is None:
            changes[field] = token
        elif stored != token and token is not None:
            raise ConfigError(f"{field} = {stored}: it is {token} in the data's tokenizer")
    return dataclasses.replace(config, **changes)


def special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The id of the token of each role, None if the tokenizer has none."""
    found = {}
    for role, spellings in ROLES.items():
        ids = (tokenizer.token_to_id(spelling) for spelling in spellings)
        found[role] = next((token for token in ids if token is not None), None)
    return found


def fingerprint(tokenizer: Tokenizer) -> str:
    """Sixteen hex digits of the vocabulary: equal if two tokenizers number tokens alike."""
    # merges and normalizers do not count, only the numbers of the tokens
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a folder, a tokenizer.json or a Hub id such as "gpt2".

    Raises InputError if there is none or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    if not path.is_file():
        folder = path if path.is_dir() else resolve(str(name), allow_patterns=(FILE,))
        path = folder / FILE
        if not path.is_file():
            raise InputError(f"{name} has no {FILE}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context: int | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads."""
    facts: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, token in special_ids(tokenizer).items():
        if token is not None and role != "first_sentinel":
            facts[role.removesuffix("_id")] = tokenizer.id_to_token(token)
    if context is not None:
        facts["model_max_length"] = context
    tokenizer.save(str(folder / FILE))
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def train_tokenizer(texts: Iterable[str], size: int, algorithm: Algorithm = "bpe", progress: bool = False) -> Tokenizer:
    """A tokenizer of `size` tokens, SPECIALS and the sentinels among them, trained on `texts`.

    "bpe" is GPT-2's byte-level BPE, which gives back every text exactly; "wordpiece" is BERT's, in
    lower case; "unigram" is T5's. Little text may give fewer tokens. A word of more than
    LONGEST_WORD characters counts as several. Raises ConfigError for a size that leaves no room.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    room = size - SENTINELS
    if room < len(SPECIALS) + 256:
        raise ConfigError(f"a tokenizer of {size} tokens: give {len(SPECIALS) + 256 + SENTINELS} or more")
    options: dict[str, Any] = {"vocab_size": room, "special_tokens": list(SPECIALS), "show_progress": progress}
    if algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    elif algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
        tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
        trainer = trainers.WordPieceTrainer(**options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)  # type: ignore[assignment,arg-type]
        tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **options)
    tokenizer.train_from_iterator((part for text in texts for part in _short_words(text)), trainer)
    # added after training, so that they are the last ids, <extra_id_0> the very last
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in sentinels])
    return tokenizer


def _short_words(text: str) -> Iterator[str]:
    """Parts that make up the text; no word in them is longer than LONGEST_WORD."""
    start = 0
    for match in LONG.finditer(text):
        for end in range(match.start() + LONGEST_WORD, match.end(), LONGEST_WORD):
            yield text[start:end]
            start = end
    yield text[start:]
