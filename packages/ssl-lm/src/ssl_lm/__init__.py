"""Language models: GPT (GPT-2), BERT (arXiv 1810.04805) and T5 (arXiv 1910.10683): pretraining, generation, weights.

from ssl_lm import GPT, GPTConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_lm.config import GPTConfig
    from ssl_lm.gpt import GPT, train
    from ssl_lm.loss import linear_cross_entropy

__version__ = version("ssl-lm")
__all__ = ["GPT", "GPTConfig", "linear_cross_entropy", "train"]

_HOME = {
    "GPT": "ssl_lm.gpt",
    "GPTConfig": "ssl_lm.config",
    "linear_cross_entropy": "ssl_lm.loss",
    "train": "ssl_lm.gpt",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_lm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
