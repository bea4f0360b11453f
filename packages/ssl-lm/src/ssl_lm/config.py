"""Configurations of GPT, BERT and T5 and their presets. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, MultipleOf

from ssl_core.bounds import Count, Depth, Portion, Positive, Rate, Whole, Width
from ssl_core.config import Optimizer, TrainConfig, check
from ssl_core.method import Recipe

SPECIAL_IDS = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "eos_token_id")
"""Fields that `ssl_lm.tokenizer.settle` fills in from the data's tokenizer if they are None."""


@dataclass(frozen=True, kw_only=True)
class LMConfig(TrainConfig):
    """What all three language models have: a vocabulary, a context and the sizes of a network."""

    vocab_size: Annotated[int, Interval(ge=1, lt=2**31)] | None = None
    """rows of the embedding; None: one for each token of the data's tokenizer"""
    context: Annotated[int, Interval(ge=2, le=2**20)] = 1024
    """tokens that the model sees at once"""
    pad_token_id: Whole | None = None
    """fills up the shorter rows of a batch; None: the tokenizer's"""
    eos_token_id: Whole | None = None
    """ends a text; None: the tokenizer's"""
    dim: Width = 768
    """width"""
    depth: Depth = 12
    """blocks; of T5, those of the encoder"""
    heads: Width = 12
    """attention heads"""
    hidden: Annotated[int, Interval(ge=1, le=2**20)] | None = None
    """hidden width of an MLP; four times the width by default"""
    layer_norm_eps: Positive = 1e-5
    """epsilon of the norms"""
    dropout: Rate = 0.0
    """of embeddings, attention and residuals"""

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.vocab_size
        for name in SPECIAL_IDS:
            token = getattr(self, name, None)
            known = token is None or size is None or token < size
            check(known, name, token, f"must lie below vocab_size = {size}")

    @property
    def window(self) -> int:
        """Tokens of the corpus that a training sample holds."""
        return self.context

    @property
    def stride(self) -> int:
        """Tokens from the beginning of one sample to that of the next."""
        return self.window

    @property
    def mlp_width(self) -> int:
        return self.hidden or 4 * self.dim

    def check_heads(self) -> None:
        """ConfigError unless the heads share the width."""
        check(self.dim % self.heads == 0, "heads", self.heads, f"must divide the width {self.dim}")


# ---------------------------------------------------------------- GPT


@dataclass(frozen=True, kw_only=True)
class GPTConfig(LMConfig):
    """Network and recipe of GPT. The defaults are GPT-2 small (124 M) and nanoGPT's recipe for
    it."""

    vocab_size: int | None = 50257
    eos_token_id: int | None = None
    activation: Literal["gelu_new", "gelu"] = "gelu_new"
    """gelu_new is GPT-2's tanh approximation, gelu the exact one"""
    dropout: float = 0.0
    """of embeddings, attention and residuals; 0.1 in the paper, 0 if every token is seen once"""

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
        self.check_heads()

    @property
    def window(self) -> int:
        return self.context + 1

    @property
    def stride(self) -> int:
        return self.context


def gpt2() -> GPTConfig:
    """GPT-2 small, 124 M: WikiText-103 perplexity 37.50 (the paper's table 3). Not run here."""
    return GPTConfig(eos_token_id=50256)


def gpt2_medium() -> GPTConfig:
    """GPT-2 medium, 355 M: WikiText-103 perplexity 26.37 (the paper's table 3). Not run here."""
    return GPTConfig(dim=1024, depth=24, heads=16, eos_token_id=50256)


def gpt2_large() -> GPTConfig:
    """GPT-2 large, 774 M: WikiText-103 perplexity 22.05 (the paper's table 3). Not run here."""
    return GPTConfig(dim=1280, depth=36, heads=20, eos_token_id=50256)


def gpt2_xl() -> GPTConfig:
    """GPT-2 XL, 1.5 B: WikiText-103 perplexity 17.48 (the paper's table 3). Not run here."""
    return GPTConfig(dim=1600, depth=48, heads=25, eos_token_id=50256)


def gpt_small() -> GPTConfig:
    """Half of GPT-2's width and depth, for your own text and its tokenizer. Not run here."""
    network: Any = {"vocab_size": None, "context": 256, "dim": 384, "depth": 6, "heads": 6}
    return GPTConfig(**network, epochs=10, batch_size=64, base_lr=4e-3, min_lr=1e-4, warmup_epochs=0.2)


def gpt_demo() -> GPTConfig:
    """Python's standard library in minutes on two CPU cores; see docs/benchmarks.md for figures."""
    network: Any = {"vocab_size": None, "context": 128, "dim": 128, "depth": 4, "heads": 4}
    run: Any = {"epochs": 1.2, "batch_size": 16, "base_lr": 0.048, "min_lr": 1e-4, "warmup_epochs": 0.1}
    return GPTConfig(**network, **run, precision="fp32")


# ---------------------------------------------------------------- BERT


@dataclass(frozen=True, kw_only=True)
class BERTConfig(LMConfig):
    """Network, masking and recipe of BERT. The defaults are BERT-base (arXiv 1810.04805)."""

    vocab_size: int | None = 30522
    context: Annotated[int, Interval(ge=5)] = 512
    pad_token_id: int | None = 0
    unk_token_id: Whole | None = 100
    """stands for what the vocabulary lacks; None: the tokenizer's"""
    cls_token_id: Whole | None = 101
    """begins a sequence; None: the tokenizer's"""
    sep_token_id: Whole | None = 102
    """ends a sequence; None: the tokenizer's"""
    mask_token_id: Whole | None = 103
    """hides a token; None: the tokenizer's"""
    first_sentinel: Whole | None = None
    """T5's <extra_id_0> if the vocabulary has it: never masked, nor are the `sentinels` below it"""
    sentinels: Whole = 100
    """sentinels of such a vocabulary"""
    token_types: Width = 2
    """kinds of segments: the sentences of a pair"""
    layer_norm_eps: float = 1e-12
    init_std: Portion = 0.02
    """spread of every matrix before training, embeddings too; with 1/√dim, about 0.1, narrow models
    sooner beat the token frequencies"""
    dropout: float = 0.1
    mask_rate: Annotated[float, Interval(gt=0, lt=1)] = 0.15
    """share of the tokens that are predicted"""
    whole_words: bool = False
    """mask all pieces of a word together"""

    epochs: float = 40
    batch_size: int = 256
    base_lr: float = 1e-4
    warmup_epochs: float = 0.4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads()

    @property
    def window(self) -> int:
        """Tokens between [CLS] and [SEP]."""
        return self.context - 2

    @property
    def masked(self) -> int:
        """Tokens of a training sample that are predicted."""
        return max(1, round(self.mask_rate * self.window))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Tokens that are neither masked nor a random replacement."""
        first = self.first_sentinel
        sentinels = () if first is None else range(first - self.sentinels + 1, first + 1)
        named = (getattr(self, name) for name in SPECIAL_IDS)
        return tuple(sorted({token for token in (*named, *sentinels) if token is not None}))


def bert_base() -> BERTConfig:
    """BERT-base, 110 M: mean GLUE score 79.6 (the paper's table 1). Not run here."""
    return BERTConfig()


def bert_large() -> BERTConfig:
    """BERT-large, 340 M: mean GLUE score 82.1 (the paper's table 1). Not run here."""
    return BERTConfig(dim=1024, depth=24, heads=16)


def bert_small() -> BERTConfig:
    """Half of BERT-base's width and depth, for your own text and its tokenizer. Not run here."""
    network: Any = {"vocab_size": None, "context": 256, "dim": 384, "depth": 6, "heads": 6, "dropout": 0.0}
    return BERTConfig(**_TOKENIZERS, **network, epochs=40, batch_size=64, base_lr=2e-3, warmup_epochs=1)


def bert_demo() -> BERTConfig:
    """Python's standard library, in two to five minutes on a CPU core.

    It guesses 12.3 % of held-out targets; the most frequent token is 3.7 % (docs/benchmarks.md).
    """
    network: Any = {"vocab_size": None, "context": 64, "dim": 128, "depth": 3, "heads": 4, "dropout": 0.0}
    run: Any = {"epochs": 1, "batch_size": 32, "base_lr": 0.012, "warmup_epochs": 0.1, "precision": "fp32"}
    return BERTConfig(**_TOKENIZERS, **network, init_std=0.09, **run)


_TOKENIZERS: Any = dict.fromkeys(SPECIAL_IDS)
"""All special tokens are those of the data's tokenizer."""


# ---------------------------------------------------------------- T5


@dataclass(frozen=True, kw_only=True)
class T5Config(LMConfig):
    """Network, corruption and recipe of T5. The defaults are T5-base v1.0 (arXiv 1910.10683)."""

    vocab_size: int | None = 32128
    context: Annotated[int, Interval(ge=5, le=2**16)] = 512
    """tokens of a corrupted text, its end included"""
    pad_token_id: int | None = 0
    eos_token_id: int | None = 1
    first_sentinel: Whole | None = 32099
    """<extra_id_0>, from which the others count down; None: the tokenizer's"""
    sentinels: Annotated[int, Interval(ge=0, le=2**16)] = 100
    """how many there are"""
    decoder_depth: Depth = 12
    """blocks of the decoder"""
    head_dim: Width = 64
    """width of a head"""
    hidden: int = 3072
    """hidden width of an MLP"""
    gated: bool = False
    """v1.1: tanh-GELU gated by a second projection, instead of ReLU"""
    tied: bool = True
    """v1.0: the embedding is the output matrix too, for states scaled by dim^-1/2"""
    buckets: Annotated[int, Interval(ge=4), MultipleOf(4)] = 32
    """of relative positions"""
    max_distance: Count = 128
    """all distances from this one on share a bucket"""
    layer_norm_eps: float = 1e-6
    dropout: float = 0.1
    """of embeddings, attention, MLP and residuals; v1.1 is pretrained with 0"""
    density: Annotated[float, Interval(gt=0, le=0.9)] = 0.15
    """share of the tokens that are removed"""
    mean_span: Annotated[float, Interval(ge=1, le=1000)] = 3.0
    """mean length of a removed span"""

    epochs: float = 1
    batch_size: int = 128
    optimizer: Optimizer = "adafactor"
    base_lr: float = 0.02
    """0.01 at 128 texts, as a share of each tensor's size; with min_lr = 0.01 too it is the paper's
    1/√max(step, 10⁴)"""
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        far, near = self.max_distance, self.buckets // 2
        check(far > near, "max_distance", far, f"must be larger than half of the {self.buckets} buckets")
        first, number = self.first_sentinel, self.sentinels
        inside = first is None or number <= first + 1 <= (self.vocab_size or 2**31)
        check(inside, "first_sentinel", first, f"{number} sentinels that count down from it leave the vocabulary")
        needed = f"a text of {self.window} tokens has {self.spans} spans, each needs its own"
        check(self.spans <= number, "sentinels", number, f"{needed}: a shorter context or longer spans")

    @property
    def window(self) -> int:
        """Tokens of the corpus whose corruption fills the context."""
        length = self.context - 1
        while self.context >= length + 1 - removed(length + 1, self.density) + self._spans(length + 1) + 1:
            length += 1
        return length

    @property
    def spans(self) -> int:
        """Spans that are removed from a training sample."""
        return self._spans(self.window)

    @property
    def targets(self) -> int:
        """Tokens that the decoder has to write: spans, sentinels and the end."""
        return removed(self.window, self.density) + self.spans + 1

    def _spans(self, length: int) -> int:
        return span_count(length, self.density, self.mean_span)


def removed(length: int, density: float) -> int:
    """Removed tokens of `length`, at least one and not all; halves round to even, as the
    authors'."""
    return min(max(round(density * length), 1), length - 1)


def span_count(length: int, density: float, mean_span: float) -> int:
    """Spans that these tokens make, at most as many as tokens are kept between them."""
    noise = removed(length, density)
    return min(max(1, round(noise / mean_span)), length - noise)


def t5_small() -> T5Config:
    """T5-small, 60 M: GLUE 77.4 (the paper's table 14). Not run here."""
    return T5Config(dim=512, depth=6, decoder_depth=6, heads=8, hidden=2048)


def t5_base() -> T5Config:
    """T5-base, 220 M: GLUE 82.7 (the paper's table 14). Not run here."""
    return T5Config()


def t5_large() -> T5Config:
    """T5-large, 770 M: GLUE 86.4 (the paper's table 14). Not run here."""
    return T5Config(dim=1024, depth=24, decoder_depth=24, heads=16, hidden=4096)


def t5_v1_1_small() -> T5Config:
    """T5 v1.1 small, 77 M: gated, untied, no dropout, unlabelled text only. Not run here."""
    sizes: Any = {"dim": 512, "depth": 8, "decoder_depth": 8, "heads": 6, "hidden": 1024}
    return T5Config(**sizes, gated=True, tied=False, dropout=0.0)


def t5_v1_1_base() -> T5Config:
    """T5 v1.1 base, 248 M: as v1.1 small. Not run here."""
    return T5Config(hidden=2048, gated=True, tied=False, dropout=0.0)


def t5_demo() -> T5Config:
    """Python's standard library, in four minutes on a CPU core.

    It guesses 6.7 % of the tokens of held-out spans; the most frequent is 3.1 %, and the loss lies
    0.5 nats below that of the frequencies (docs/benchmarks.md).
    """
    tokens: Any = dict.fromkeys(("vocab_size", "pad_token_id", "eos_token_id", "first_sentinel"))
    sizes: Any = {"context": 128, "dim": 128, "depth": 2, "decoder_depth": 2, "heads": 4, "head_dim": 32, "hidden": 512}
    run: Any = {"epochs": 0.8, "batch_size": 16, "base_lr": 0.48, "warmup_epochs": 0.08, "precision": "fp32"}
    return T5Config(**tokens, **sizes, dropout=0.0, **run)


# ---------------------------------------------------------------- what the command line lists


def gpt_fitted(network: str, side: int, samples: int) -> GPTConfig:
    """The demo's network and its tokens, `small`, or GPT-2 small, with the data's tokenizer."""
    if network == "base":
        return dataclasses.replace(gpt2(), vocab_size=None, eos_token_id=None, base_lr=4e-4)
    if network == "small":
        return dataclasses.replace(gpt_small(), base_lr=2e-3, batch_size=256)
    return dataclasses.replace(gpt_demo(), epochs=10, base_lr=0.012, min_lr=1e-4, precision="auto")


def bert_fitted(network: str, side: int, samples: int) -> BERTConfig:
    """As `gpt_fitted`: the demo's network, `small`, or BERT-base."""
    if network == "base":
        return dataclasses.replace(bert_base(), **_TOKENIZERS, vocab_size=None, base_lr=1e-4)
    if network == "small":
        return dataclasses.replace(bert_small(), base_lr=1e-3, batch_size=256)
    return dataclasses.replace(bert_demo(), epochs=40, base_lr=4e-3, precision="auto")


def t5_fitted(network: str, side: int, samples: int) -> T5Config:
    """As `gpt_fitted`: the demo's network, T5-small's, or T5-base's."""
    tokens: Any = dict.fromkeys(("vocab_size", "pad_token_id", "eos_token_id", "first_sentinel"))
    if network == "tiny":
        return dataclasses.replace(t5_demo(), epochs=10, base_lr=0.12, precision="auto")
    return dataclasses.replace(t5_small() if network == "small" else t5_base(), **tokens, epochs=10, dropout=0.0)


GPT2 = {"gpt2": gpt2, "gpt2_medium": gpt2_medium, "gpt2_large": gpt2_large, "gpt2_xl": gpt2_xl}
T5_V1_1 = {"v1_1_small": t5_v1_1_small, "v1_1_base": t5_v1_1_base}
PRESETS: dict[str, dict[str, Callable[[], Any]]] = {
    "gpt": {"demo": gpt_demo, "small": gpt_small, **GPT2},
    "bert": {"demo": bert_demo, "small": bert_small, "base": bert_base, "large": bert_large},
    "t5": {"demo": t5_demo, "small": t5_small, "base": t5_base, "large": t5_large, **T5_V1_1},
}


def _recipe(name: str, method: str, views: str, measure: str, eval_view: str = "whole_text") -> Recipe:
    """The recipe of one model; they share the text, its figures and the baseline."""
    return Recipe(
        name=name,
        package="ssl_lm",
        config=f"ssl_lm.config:{method}Config",
        method=f"ssl_lm.{name}:{method}",
        views=f"ssl_lm.views:{views}",
        show="ssl_lm.show:show",
        eval_view=f"ssl_lm.views:{eval_view}",
        source="ssl_lm.corpus:open_text",
        built_in="stdlib",
        blank="ssl_lm.views:blank",
        raw=("bag of tokens", "ssl_lm.views:bag_of_tokens"),
        settle="ssl_lm.corpus:settle",
        ready="ssl_lm.ready:ready",
        fitted=f"ssl_lm.config:{name}_fitted",
        measure=f"ssl_lm.measure:{measure}",
    )


RECIPES = {
    "gpt": _recipe("gpt", "GPT", "next_tokens", "measure"),
    "bert": _recipe("bert", "BERT", "masked", "measure_masked", "framed_text"),
    "t5": _recipe("t5", "T5", "spans", "measure_spans"),
}
