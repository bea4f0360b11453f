"""Training samples from windows of text, and the view of evaluations. All randomness comes from the sample's own rng."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.config import check
from ssl_core.errors import InputError
from ssl_lm.config import BERTConfig, LMConfig, T5Config
from ssl_lm.loss import IGNORED
from ssl_lm.masking import mask_tokens
from ssl_lm.spans import corrupt_documents, corrupt_spans, noise_spans
from ssl_lm.tokenizer import settled

BINS = 1024
"""Of `bag_of_tokens`."""


def blank(config: LMConfig) -> dict[str, Any]:
    """A window of one ordinary token, as the source gives it."""
    window = torch.full((config.window,), settled(config) // 2)
    return {"input_ids": window, "documents": torch.zeros_like(window)}


def bag_of_tokens(input_ids: Tensor) -> Tensor:
    """(b, BINS): how often each token occurs in a text, folded into BINS bins; the baseline without a network."""
    counts = F.one_hot(input_ids.clamp(min=0) % BINS, BINS).float()  # b t bins
    return (counts * (input_ids >= 0)[..., None]).mean(1)


def needed(config: LMConfig, *names: str) -> list[int]:
    """The ids of special tokens. Raises ConfigError if the tokenizer lacks one."""
    for name in names:
        hint = "the tokenizer has no such token: train one with `ssl-lm prepare --tokenizer train:8000`"
        check(getattr(config, name) is not None, name, None, hint)
    return [getattr(config, name) for name in names]


def generator_of(rng: np.random.Generator) -> torch.Generator:
    """torch's generator with a seed from the sample's rng."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))


# ---------------------------------------------------------------- GPT


@dataclass(frozen=True)
class WholeText:
    """The beginning of a text, filled up to the context; what `encode` of GPT and T5 reads."""

    context: int
    pad: int

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """{"views": [int64 (context,)]}; padding is the pad token, or -1 if there is none."""
        tokens = sample["input_ids"][: self.context]
        return {"views": [F.pad(tokens, (0, self.context - len(tokens)), value=self.pad)]}


def whole_text(config: LMConfig) -> WholeText:
    pad = config.pad_token_id
    return WholeText(config.context, -1 if pad is None else pad)


@dataclass(frozen=True)
class NextTokens:
    """Every token is a target and, except the last, an input."""

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"input_ids": int64 (context + 1,)}"""
        return {"input_ids": sample["input_ids"]}


def next_tokens(config: LMConfig) -> NextTokens:
    return NextTokens()


# ---------------------------------------------------------------- BERT


def framed(tokens: Tensor, config: BERTConfig) -> Tensor:
    """[CLS] tokens [SEP], for tokens (t,): (t + 2,)."""
    return torch.cat([tokens.new_tensor([config.cls_token_id]), tokens, tokens.new_tensor([config.sep_token_id])])


@dataclass(frozen=True)
class Framed:
    """The beginning of a text between [CLS] and [SEP], filled up to the context; what BERT's `encode` reads."""

    config: BERTConfig

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """{"views": [int64 (context,)]}"""
        tokens = framed(sample["input_ids"][: self.config.window], self.config)
        return {"views": [F.pad(tokens, (0, self.config.context - len(tokens)), value=self.config.pad_token_id)]}


def framed_text(config: BERTConfig) -> Framed:
    needed(config, "pad_token_id", "cls_token_id", "sep_token_id")
    return Framed(config)


@dataclass(frozen=True)
class Masked:
    """[CLS], a window of text and [SEP], with `config.masked` of its tokens hidden."""

    config: BERTConfig
    mask_token_id: int

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"input_ids" (t,), "positions" (k,), "labels" (k,), "documents" (t,)}, int64.

        Labels are -100 if a text has fewer tokens to hide. Whole words need "words" (window,) in the sample, the number
        of each token's word; raises InputError without.
        """
        config, documents = self.config, sample["documents"]
        tokens, words = framed(sample["input_ids"], config)[None], None  # 1 t
        if config.whole_words:
            if "words" not in sample:
                raise InputError("whole_words needs a source that says where words begin")
            words = F.pad(sample["words"], (1, 1), value=-1)[None]
        inputs, labels = mask_tokens(
            tokens,
            vocab_size=settled(config),
            mask_token_id=self.mask_token_id,
            special_ids=config.special_ids,
            count=config.masked,
            words=words,
            generator=generator_of(rng),
        )
        # every sample has k positions, so that shapes are the same in every step
        positions = (labels[0] != IGNORED).nonzero()[:, 0]
        missing = (0, config.masked - len(positions))
        return {
            "input_ids": inputs[0],
            "positions": F.pad(positions, missing),
            "labels": F.pad(labels[0, positions], missing, value=IGNORED),
            "documents": torch.cat([documents[:1], documents, documents[-1:]]),
        }


def masked(config: BERTConfig) -> Masked:
    needed(config, "pad_token_id", "cls_token_id", "sep_token_id")
    return Masked(config, *needed(config, "mask_token_id"))


# ---------------------------------------------------------------- T5


@dataclass(frozen=True)
class Spans:
    """A window of text without some spans, and these spans."""

    config: T5Config
    pad_token_id: int
    eos_token_id: int
    first_sentinel: int

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"input_ids" (n,), "labels" (o,), "documents" (n,), "label_documents" (o,)}, int64."""
        config, generator = self.config, generator_of(rng)
        noise = noise_spans(1, config.window, density=config.density, mean_span=config.mean_span, generator=generator)
        inputs, labels = corrupt_spans(
            sample["input_ids"][None],
            noise,
            first_sentinel=self.first_sentinel,
            sentinels=config.sentinels,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
        )
        documents, of_labels = corrupt_documents(sample["documents"][None], noise)
        return {
            "input_ids": inputs[0],
            "labels": labels[0],
            "documents": documents[0],
            "label_documents": of_labels[0],
        }


def spans(config: T5Config) -> Spans:
    return Spans(config, *needed(config, "pad_token_id", "eos_token_id", "first_sentinel"))
