"""Language models: GPT (GPT-2), BERT (arXiv 1810.04805) and T5 (arXiv 1910.10683): pretraining, generation, weights.

from ssl_lm import GPT, GPTConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_lm.bert import BERT, mask_tokens
    from ssl_lm.config import BERTConfig, GPTConfig, T5Config
    from ssl_lm.generate import complete
    from ssl_lm.gpt import GPT
    from ssl_lm.loss import linear_cross_entropy
    from ssl_lm.prepare import prepare_text
    from ssl_lm.t5 import T5, corrupt_spans, noise_spans
    from ssl_lm.tokenizer import load_tokenizer, train_tokenizer
    from ssl_lm.training import train

__version__ = version("ssl-lm")
__all__ = [
    "BERT",
    "GPT",
    "T5",
    "BERTConfig",
    "GPTConfig",
    "T5Config",
    "complete",
    "corrupt_spans",
    "linear_cross_entropy",
    "load_tokenizer",
    "mask_tokens",
    "noise_spans",
    "prepare_text",
    "train",
    "train_tokenizer",
]  # fmt: skip

_HOME = {
    "GPT": "ssl_lm.gpt",
    "BERT": "ssl_lm.bert",
    "T5": "ssl_lm.t5",
    "GPTConfig": "ssl_lm.config",
    "BERTConfig": "ssl_lm.config",
    "T5Config": "ssl_lm.config",
    "complete": "ssl_lm.generate",
    "corrupt_spans": "ssl_lm.t5",
    "linear_cross_entropy": "ssl_lm.loss",
    "load_tokenizer": "ssl_lm.tokenizer",
    "mask_tokens": "ssl_lm.bert",
    "noise_spans": "ssl_lm.t5",
    "prepare_text": "ssl_lm.prepare",
    "train": "ssl_lm.training",
    "train_tokenizer": "ssl_lm.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_lm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
