"""Training samples from windows of text, and the views of evaluations.

All randomness comes from the sample's own rng. A view is a function of a config bound to one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

Sample = dict[str, Any]
View = Callable[[Sample, np.random.Generator], Sample]

BINS = 1024
"""Of `bag_of_tokens`."""


def blank(config: LMConfig) -> Sample:
    """A window of one ordinary token, as the source gives it."""
    window = torch.full((config.window,), settled(config) // 2)
    return {"input_ids": window, "documents": torch.zeros_like(window)}


def bag_of_tokens(input_ids: Tensor) -> Tensor:
    """(b, BINS): the share of each token in a text, folded into BINS bins. No network: a
    baseline."""
    counts = F.one_hot(input_ids.clamp(min=0) % BINS, BINS).float()  # b t bins
    return (counts * (input_ids >= 0)[..., None]).mean(1)


def needed(config: LMConfig, *names: str) -> list[int]:
    """The ids of special tokens. Raises ConfigError if the tokenizer lacks one."""
    for name in names:
        hint = "the tokenizer has no such token: train one with `ssl-lm prepare --tokenizer train:8000`"
        check(getattr(config, name) is not None, name, None, hint)
    return [getattr(config, name) for name in names]


# ---------------------------------------------------------------- GPT


def next_tokens(config: LMConfig) -> View:
    """Every token but the first is a target: {"input_ids": int64 (context + 1,)}."""
    return _window


def _window(sample: Sample, rng: np.random.Generator) -> Sample:
    return {"input_ids": sample["input_ids"]}


def whole_text(config: LMConfig) -> View:
    """What `encode` of GPT and T5 reads: the beginning of a text, filled up to the context.

    {"views": [int64 (context,)]}; padding is the pad token, or -1 if there is none.
    """
    return partial(_beginning, config)


def _beginning(config: LMConfig, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
    tokens, pad = sample["input_ids"][: config.context], config.pad_token_id
    return {"views": [F.pad(tokens, (0, config.context - len(tokens)), value=-1 if pad is None else pad)]}


# ---------------------------------------------------------------- BERT


def framed_text(config: BERTConfig) -> View:
    """What BERT's `encode` reads: the beginning of a text between [CLS] and [SEP].

    It is filled up to the context: {"views": [int64 (context,)]}
    """
    needed(config, "pad_token_id", "cls_token_id", "sep_token_id")
    return partial(_framed_beginning, config)


def framed(tokens: Tensor, config: BERTConfig) -> Tensor:
    """[CLS] tokens [SEP], for tokens (t,): (t + 2,)."""
    return torch.cat([tokens.new_tensor([config.cls_token_id]), tokens, tokens.new_tensor([config.sep_token_id])])


def _framed_beginning(config: BERTConfig, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
    return _beginning(config, {"input_ids": framed(sample["input_ids"][: config.window], config)})


def masked(config: BERTConfig) -> View:
    """[CLS], a window of text and [SEP], with `config.masked` of its tokens hidden.

    {"input_ids" (t,), "positions" (k,), "labels" (k,), "documents" (t,)}, int64; labels are -100 if
    a text has fewer tokens to hide. Whole words need "words" (window,) in the sample, the number of
    each token's word; raises InputError without.
    """
    needed(config, "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    return partial(_masked, config)


def _masked(config: BERTConfig, sample: Sample, rng: np.random.Generator) -> Sample:
    tokens, words, documents = framed(sample["input_ids"], config)[None], None, sample["documents"]  # 1 t
    if config.whole_words:
        if "words" not in sample:
            raise InputError("whole_words needs a source that says where words begin")
        words = F.pad(sample["words"], (1, 1), value=-1)[None]  # 1 t; [CLS] and [SEP] belong to no word
    [mask] = needed(config, "mask_token_id")
    special: Any = {"vocab_size": settled(config), "mask_token_id": mask, "special_ids": config.special_ids}
    inputs, labels = mask_tokens(tokens, count=config.masked, words=words, generator=_generator(rng), **special)
    # every sample has k positions, so that shapes are the same in every step
    positions = (labels[0] != IGNORED).nonzero()[:, 0]  # at most k
    missing = (0, config.masked - len(positions))
    return {
        "input_ids": inputs[0],
        "positions": F.pad(positions, missing),
        "labels": F.pad(labels[0, positions], missing, value=IGNORED),
        "documents": torch.cat([documents[:1], documents, documents[-1:]]),
    }


# ---------------------------------------------------------------- T5


def spans(config: T5Config) -> View:
    """A window of text without some spans, and these spans.

    {"input_ids" (n,), "labels" (o,), "documents" (n,), "label_documents" (o,)}, int64.
    """
    needed(config, "pad_token_id", "eos_token_id", "first_sentinel")
    return partial(_spans, config)


def _spans(config: T5Config, sample: Sample, rng: np.random.Generator) -> Sample:
    pad, eos, first = needed(config, "pad_token_id", "eos_token_id", "first_sentinel")
    generator, density, mean_span = _generator(rng), config.density, config.mean_span
    noise = noise_spans(1, config.window, density=density, mean_span=mean_span, generator=generator)  # 1 t
    special = {"first_sentinel": first, "sentinels": config.sentinels, "eos_token_id": eos, "pad_token_id": pad}
    inputs, labels = corrupt_spans(sample["input_ids"][None], noise, **special)
    documents, of_labels = corrupt_documents(sample["documents"][None], noise)
    return {"input_ids": inputs[0], "labels": labels[0], "documents": documents[0], "label_documents": of_labels[0]}


def _generator(rng: np.random.Generator) -> torch.Generator:
    """torch's generator with a seed from the sample's rng."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))
