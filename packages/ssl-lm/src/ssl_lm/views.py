"""Training samples from windows of text, and the view of evaluations. What is drawn is drawn from the sample's own rng."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lm.config import LMConfig
from ssl_lm.tokenizer import settled

BINS = 1024
"""Of `bag_of_tokens`."""


def blank(config: LMConfig) -> dict[str, Any]:
    """A window of one ordinary token, as the source gives it."""
    window = torch.full((config.window,), settled(config) // 2)
    return {"input_ids": window, "documents": torch.zeros_like(window)}


def bag_of_tokens(input_ids: Tensor) -> Tensor:
    """(b, BINS): how often each token stands in a text, folded into BINS bins; the baseline without a network."""
    counts = F.one_hot(input_ids.clamp(min=0) % BINS, BINS).float()  # b t bins
    return (counts * (input_ids >= 0)[..., None]).mean(1)


@dataclass(frozen=True)
class WholeText:
    """The beginning of a text, filled up to the context; what `encode` reads."""

    context: int
    pad: int

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """{"views": [int64 (context,)]}; padding is the pad token, or -1 where there is none."""
        tokens = sample["input_ids"][: self.context]
        return {"views": [F.pad(tokens, (0, self.context - len(tokens)), value=self.pad)]}


def whole_text(config: LMConfig) -> WholeText:
    pad = config.pad_token_id
    return WholeText(config.context, -1 if pad is None else pad)


# ---------------------------------------------------------------- GPT


@dataclass(frozen=True)
class NextTokens:
    """Every token is a target and, but for the last, an input."""

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"input_ids": int64 (context + 1,)}"""
        return {"input_ids": sample["input_ids"]}


def next_tokens(config: LMConfig) -> NextTokens:
    return NextTokens()
