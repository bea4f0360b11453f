"""Configurations of GPT, BERT and T5 and their presets. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ssl_core.config import TrainConfig, check
from ssl_core.method import Recipe

SPECIAL_IDS = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "eos_token_id")
"""Fields that, where a config has them and they are None, `ssl_lm.tokenizer.settle` fills in from the data's tokenizer."""


@dataclass(frozen=True, kw_only=True)
class LMConfig(TrainConfig):
    """What every language model knows of its text."""

    vocab_size: int | None = None
    """rows of the embedding; None: as many as the data's tokenizer has"""
    context: int = 1024
    """tokens that the model sees at once"""
    pad_token_id: int | None = None
    """fills up the shorter rows of a batch; None: the tokenizer's"""
    eos_token_id: int | None = None
    """stands between documents and ends a text; None: the tokenizer's"""

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.vocab_size
        check(size is None or 0 < size < 2**31, "vocab_size", size, "must be positive")
        check(1 < self.context <= 2**20, "context", self.context, "must lie in 2 … 2^20")
        for name in SPECIAL_IDS:
            token = getattr(self, name, None)
            below = token is None or (token >= 0 and (size is None or token < size))
            check(below, name, token, f"must lie in 0 … {'vocab_size' if size is None else size} - 1")

    @property
    def window(self) -> int:
        """Tokens of the corpus that a training sample holds."""
        return self.context


# ---------------------------------------------------------------- GPT


@dataclass(frozen=True, kw_only=True)
class GPTConfig(LMConfig):
    """Network and recipe of GPT. The defaults are GPT-2 small (124 M) and the recipe that nanoGPT reproduces it with."""

    vocab_size: int | None = 50257
    eos_token_id: int | None = None
    dim: int = 768
    """width"""
    depth: int = 12
    """blocks"""
    heads: int = 12
    """attention heads"""
    hidden: int | None = None
    """hidden width of an MLP; four times the width by default"""
    activation: Literal["gelu_new", "gelu"] = "gelu_new"
    """gelu_new is GPT-2's tanh approximation, gelu the exact one"""
    layer_norm_eps: float = 1e-5
    dropout: float = 0.0
    """of embeddings, attention and residuals; 0.1 in the paper, 0 where every token is seen once"""

    epochs: float = 1
    batch_size: int = 480
    """sequences of `context` tokens: nanoGPT's half a million tokens"""
    base_lr: float = 3.2e-4
    """6e-4 at 480 sequences"""
    min_lr: float = 6e-5
    warmup_epochs: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.dim <= 2**16, "dim", self.dim, "must lie in 1 … 65536")
        check(0 < self.depth <= 1000, "depth", self.depth, "must lie in 1 … 1000")
        check(self.heads > 0 and self.dim % self.heads == 0, "heads", self.heads, f"must divide the width {self.dim}")
        check(self.hidden is None or 0 < self.hidden <= 2**20, "hidden", self.hidden, "must lie in 1 … 2^20")
        check(self.layer_norm_eps > 0, "layer_norm_eps", self.layer_norm_eps, "must be positive")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "must lie in [0, 1)")

    @property
    def window(self) -> int:
        return self.context + 1

    @property
    def mlp_width(self) -> int:
        return self.hidden or 4 * self.dim


def gpt2() -> GPTConfig:
    """GPT-2 small, 124 M: WikiText-103 perplexity 37.50 zero-shot (the paper's table 3). Not run here."""
    return GPTConfig(eos_token_id=50256)


def gpt2_medium() -> GPTConfig:
    """GPT-2 medium, 355 M: WikiText-103 perplexity 26.37 zero-shot (the paper's table 3). Not run here."""
    return GPTConfig(dim=1024, depth=24, heads=16, eos_token_id=50256)


def gpt2_large() -> GPTConfig:
    """GPT-2 large, 774 M: WikiText-103 perplexity 22.05 zero-shot (the paper's table 3). Not run here."""
    return GPTConfig(dim=1280, depth=36, heads=20, eos_token_id=50256)


def gpt2_xl() -> GPTConfig:
    """GPT-2 XL, 1.5 B: WikiText-103 perplexity 17.48 zero-shot (the paper's table 3). Not run here."""
    return GPTConfig(dim=1600, depth=48, heads=25, eos_token_id=50256)


def gpt_small() -> GPTConfig:
    """A quarter of GPT-2's width for text of one's own, with the tokenizer of that text. Not run here."""
    return GPTConfig(
        vocab_size=None, context=256, dim=384, depth=6, heads=6,
        epochs=10, batch_size=64, base_lr=4e-3, min_lr=1e-4, warmup_epochs=0.2,
    )  # fmt: skip


def gpt_demo() -> GPTConfig:
    """The source of Python's standard library in minutes on two CPU cores; figures stand in docs/benchmarks.md."""
    return GPTConfig(
        vocab_size=None, context=128, dim=192, depth=4, heads=4,
        epochs=1, batch_size=32, base_lr=0.024, min_lr=1e-4, warmup_epochs=0.05, precision="fp32",
    )  # fmt: skip


GPT_PRESETS: dict[str, Callable[[], GPTConfig]] = {
    "demo": gpt_demo,
    "small": gpt_small,
    "gpt2": gpt2,
    "gpt2_medium": gpt2_medium,
    "gpt2_large": gpt2_large,
    "gpt2_xl": gpt2_xl,
}

GPT_RECIPE = Recipe(
    name="gpt",
    package="ssl_lm",
    config="ssl_lm.config:GPTConfig",
    presets="ssl_lm.config:GPT_PRESETS",
    method="ssl_lm.gpt:GPT",
    views="ssl_lm.views:next_tokens",
    show="ssl_lm.show:show",
    eval_view="ssl_lm.views:whole_text",
    source="ssl_lm.corpus:open_text",
)


# ---------------------------------------------------------------- BERT


# ---------------------------------------------------------------- T5


# ---------------------------------------------------------------- what the command line lists

RECIPES = [GPT_RECIPE]
