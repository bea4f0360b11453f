"""Figures of a language model on held-out text: perplexity and bits per byte, beside counts and a compressor."""

from __future__ import annotations

import ast
import lzma
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssl_core.errors import DataError
from ssl_lm.loss import IGNORED
from ssl_lm.ngram import NGram
from ssl_lm.shards import Shards
from ssl_lm.views import framed, masked, spans
from ssl_train.data.loader import collate

if TYPE_CHECKING:
    from ssl_lm.bert import BERT
    from ssl_lm.corpus import Windows
    from ssl_lm.gpt import GPT
    from ssl_lm.t5 import T5

TOKENS = 2**18
"""Held-out tokens that are looked at: whole documents, as many as fit."""
COUNTED = 2**23
"""Training tokens that the n-grams count."""
BATCH = 16
PSEUDO = 2**13
"""Held-out tokens that are hidden one by one for a pseudo-perplexity."""
SAMPLES, LENGTH = 8, 160
"""Texts, and tokens in each, that are generated and read as code."""
UNPREPARED = "this is measured on prepared text of at least one window: run `ssl-lm prepare` on more of it"


def measure(method: GPT, source: Any) -> dict[str, Any]:
    """Perplexity and bits per byte of GPT on `source`; on prepared text beside unigram, 3-gram and xz; for code, how
    many generated lines parse; "summary" has the lines that the terminal shows."""
    documents = list(at_most(source.texts(), TOKENS))
    figures = perplexity(method, documents)
    rows = [("GPT", figures["bits_per_byte"])]
    if source.prepared:
        figures["baselines"] = baselines(source, documents)
        rows += list(figures["baselines"].items())
    summary = [
        f"{figures['tokens']:,} tokens, {figures['bytes']:,} bytes; perplexity {figures['perplexity']:.2f}",
        "bits per byte: " + ", ".join(f"{name} {value:.3f}" for name, value in rows),
    ]
    if method.tokenizer is not None:
        texts = samples(method)
        figures["sample"] = texts[0]
        if source_is_code(source):
            figures["lines_that_parse"] = {
                "generated": parsing_share(texts), "held out": parsing_share(decoded(method, documents[:20]))
            }  # fmt: skip
            shares = ", ".join(f"{name} {share:.0%}" for name, share in figures["lines_that_parse"].items())
            summary.append(f"lines that ast.parse reads: {shares}")
        summary += ["generated:", *(f"  | {line}" for line in texts[0].strip("\n").splitlines()[:24])]
    return {**figures, "summary": summary}


def at_most(documents: Iterable[tuple[np.ndarray, int]], tokens: int) -> Iterator[tuple[np.ndarray, int]]:
    """Documents in order until they hold `tokens`, the first in any case."""
    for ids, size in documents:
        yield ids, size
        tokens -= len(ids)
        if tokens <= 0:
            return


def perplexity(method: GPT, documents: list[tuple[np.ndarray, int]]) -> dict[str, Any]:
    """{"perplexity", "bits_per_byte", "tokens", "bytes"} over documents of (tokens, bytes of text).

    Every token is predicted once, from at least half a context of the tokens before it where there are so many; the
    first from an eos token. The end of a document counts as a token and as no byte. Raises DataError for no text.
    """
    total, count, size = 0.0, 0, sum(size for _, size in documents)
    device = next(method.parameters()).device
    for inputs, labels in _batches(method, documents):
        total += float(method.nll(inputs.to(device), labels.to(device)).double().sum())
        count += int((labels >= 0).sum())
    if not count or not size:
        raise DataError("there is no text to measure on")
    return {
        "perplexity": math.exp(min(total / count, 700)), "bits_per_byte": total / math.log(2) / size,
        "tokens": count, "bytes": size,
    }  # fmt: skip


def _batches(method: GPT, documents: list[tuple[np.ndarray, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) (b, t), labels -100 at padding and at what an earlier window has counted."""
    context, eos = method.config.context, method.config.eos_token_id
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for ids, _ in documents:
        stream = ids if eos is None else np.append(eos, ids)
        counted = 1
        for start in range(0, len(stream) - 1, max(1, context // 2)):
            end = min(len(stream), start + context + 1)
            labels = stream[start + 1 : end].copy()
            labels[: max(0, counted - start - 1)] = -100
            rows.append((stream[start : end - 1], labels))
            counted = end
            if end == len(stream):
                break
    for i in range(0, len(rows), BATCH):
        some = rows[i : i + BATCH]
        width = max(len(inputs) for inputs, _ in some)
        yield (
            torch.from_numpy(np.stack([np.pad(x, (0, width - len(x))) for x, _ in some])),
            torch.from_numpy(np.stack([np.pad(y, (0, width - len(y)), constant_values=-100) for _, y in some])),
        )


def baselines(source: Windows, documents: list[tuple[np.ndarray, int]]) -> dict[str, float]:
    """Bits per byte of {"unigram", "3-gram"} of the training tokens, and of "xz" on the held-out text alone."""
    train = Shards(source.folder, "train")
    stream = train.read(0, min(len(train), COUNTED))
    held_out, size = np.concatenate([ids for ids, _ in documents]), sum(size for _, size in documents)
    vocabulary = source.tokenizer.get_vocab_size()
    bits = {}
    for name, order in (("unigram", 1), ("3-gram", 3)):
        context = np.full(order - 1, held_out[-1])  # an eos token, in most data
        nats = NGram(stream, vocabulary, order).nll(np.concatenate([context, held_out]))
        bits[name] = float(nats.sum()) / math.log(2) / size
    text = "".join(source.tokenizer.decode(ids.tolist()) for ids, _ in documents).encode()
    bits["xz"] = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / max(1, len(text))
    return bits


def samples(method: GPT, number: int = SAMPLES, length: int = LENGTH, seed: int = 0) -> list[str]:
    """Texts that the model writes from nothing."""
    from ssl_lm.generate import complete

    return complete(method, [""] * number, tokens=length, temperature=0.8, top_p=0.95, seed=seed)


def decoded(method: GPT, documents: list[tuple[np.ndarray, int]]) -> list[str]:
    return [method.needed_tokenizer().decode(ids.tolist()) for ids, _ in documents]


def source_is_code(source: Any) -> bool:
    """Whether the text is the standard library's."""
    return source.prepared and source.folder.name.startswith("stdlib-")


def parsing_share(texts: Iterable[str]) -> float:
    """Share of the lines that are not blank which `ast.parse` reads alone, a line that opens a block with `pass`."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return sum(map(_parses, lines)) / max(1, len(lines))


def _parses(line: str) -> bool:
    for code in (line, f"{line} pass"):
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        return True
    return False


# ---------------------------------------------------------------- BERT and T5


def measure_masked(method: BERT, source: Any) -> dict[str, Any]:
    """BERT on `source`: pseudo-perplexity (arXiv 1910.14659: every token hidden by itself), and on prepared text loss and
    accuracy at masked tokens beside the most frequent token."""
    view, device = masked(method.config), next(method.parameters()).device
    figures = objective(method, view, source) if source.prepared else {}
    summary = [_line(figures)] if figures else []
    total, count = 0.0, 0
    for ids, _ in at_most(source.texts(), PSEUDO):
        for start in range(0, len(ids), method.config.window):
            text = torch.from_numpy(ids[start : start + method.config.window])
            nats = method.pseudo_nll(framed(text, method.config).to(device))
            total, count = total + float(nats.double().sum()), count + len(nats)
            if count >= PSEUDO:
                break
    figures["pseudo_perplexity"] = math.exp(min(total / max(1, count), 700))
    summary.append(f"pseudo-perplexity {figures['pseudo_perplexity']:.2f} over {count:,} tokens")
    return {**figures, "summary": summary}


def measure_spans(method: T5, source: Any) -> dict[str, Any]:
    """T5 on prepared text: loss and accuracy at the tokens of removed spans, beside the most frequent of them. Sentinels
    and ends, whose order is the same in every target, are read by the decoder and not counted. Raw text has no figures;
    DataError where it has no labels, so that nothing of it can be measured."""
    if not source.prepared and source.labels is None:
        raise DataError(UNPREPARED)
    if not source.prepared:
        return {"summary": []}
    figures = objective(method, _SpanTokens(method), source)
    return {**figures, "summary": [_line(figures)]}


class _SpanTokens:
    """`spans` without its sentinels and ends among the labels; the decoder reads them all the same."""

    def __init__(self, method: T5) -> None:
        self.view, self.shift, self.config = spans(method.config), method.shift, method.config

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        made, first = self.view(sample, rng), self.view.first_sentinel
        labels = made["labels"]
        known = (labels > first - self.config.sentinels) & (labels <= first) | (labels == self.config.eos_token_id)
        given = self.shift(labels[None])[0]
        return {**made, "labels": labels.masked_fill(known, IGNORED), "decoder_input_ids": given}


@torch.inference_mode()
def objective(method: Any, view: Any, source: Any, windows: int = 256) -> dict[str, float]:
    """Mean outputs of `forward` over the labels that `view` makes of held-out windows; the accuracy of always saying the
    most frequent of them, and their entropy, which no constant guess undercuts. Of few labels that lies below the
    entropy of the text: of forty it is no measure. Raises DataError for less prepared text than a window."""
    if len(source.shards) < source.window:
        raise DataError(UNPREPARED)
    device, number = next(method.parameters()).device, min(windows, len(source))
    made = [view(source.load(i), np.random.default_rng((0, i))) for i in range(number)]
    labels = torch.cat([sample["labels"] for sample in made])
    labels = labels[labels != IGNORED]
    sums: dict[str, float] = {}
    for i in range(0, number, BATCH):
        batch = {key: value.to(device) for key, value in collate(made[i : i + BATCH]).items()}
        share = int((batch["labels"] != IGNORED).sum()) / max(1, len(labels))
        for key, value in method(batch, 0.0).items():
            sums[key] = sums.get(key, 0.0) + float(value) * share
    p = torch.bincount(labels).double() / max(1, len(labels))
    return {
        **sums,
        "most_frequent_accuracy": float(p.max()),
        "unigram_entropy": float(-(p * p.clamp(min=1e-12).log()).sum()),
    }


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in figures.items())
