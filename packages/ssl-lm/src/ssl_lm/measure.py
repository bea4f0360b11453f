"""Figures of language models on held-out text, beside counted tokens and a compressor."""

from __future__ import annotations

import ast
import lzma
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssl_core.errors import DataError
from ssl_lm.generate import complete
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

Documents = list[tuple[np.ndarray, int]]
"""(tokens, bytes of text) of every document."""

TOKENS = 2**18
"""Held-out tokens that are measured: whole documents, until there are so many."""
COUNTED = 2**23
"""Training tokens that the n-grams count."""
BATCH = 16
PSEUDO = 2**13
"""Held-out tokens that are hidden one by one for a pseudo-perplexity."""
SAMPLES, LENGTH = 8, 160
"""Texts, and tokens in each, that are generated and read as code."""
UNPREPARED = "this is measured on prepared text of at least one window: run `ssl-lm prepare` on more of it"


# ---------------------------------------------------------------- GPT


def measure(method: GPT, source: Any) -> dict[str, Any]:
    """Perplexity and bits per byte of GPT on `source`; "summary" is what the terminal shows.

    On prepared text also the bits per byte of unigrams, 3-grams and xz; for code, how many
    generated lines parse.
    """
    # the model and all baselines measure the same documents
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
        # the built-in text is code: the standard library
        if source.prepared and source.folder.name.startswith("stdlib-"):
            held_out = [method.tokenizer.decode(ids.tolist()) for ids, _ in documents[:20]]
            shares = {"generated": parsing_share(texts), "held out": parsing_share(held_out)}
            figures["lines_that_parse"] = shares
            shown = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            summary.append(f"lines that ast.parse reads: {shown}")
        summary += ["generated:", *(f"  | {line}" for line in texts[0].strip("\n").splitlines()[:24])]
    return {**figures, "summary": summary}


def at_most(documents: Iterable[tuple[np.ndarray, int]], tokens: int) -> Iterator[tuple[np.ndarray, int]]:
    """Documents in order until they hold `tokens`, and in any case the first."""
    for ids, size in documents:
        yield ids, size
        tokens -= len(ids)
        if tokens <= 0:
            return


def perplexity(method: GPT, documents: Documents) -> dict[str, Any]:
    """{"perplexity", "bits_per_byte", "tokens", "bytes"} over documents.

    Every token is predicted once, from at least half a context of the tokens before it if there are
    so many; the first from an eos token. The end of a document counts as a token and as no byte.
    Raises DataError if there is no text.
    """
    total, count, size = 0.0, 0, sum(size for _, size in documents)
    device = next(method.parameters()).device
    for inputs, labels in _batches(method, documents):
        # summed in float64: a quarter of a million terms
        total += float(method.nll(inputs.to(device), labels.to(device)).double().sum())
        count += int((labels != IGNORED).sum())
    if not count or not size:
        raise DataError("there is no text to measure on")
    figures = {"perplexity": math.exp(min(total / count, 700)), "bits_per_byte": total / math.log(2) / size}
    return {**figures, "tokens": count, "bytes": size}


def _batches(method: GPT, documents: Documents) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) (b, t), labels -100 at padding and at what an earlier window has counted."""
    context, eos = method.config.context, method.config.eos_token_id
    rows: list[tuple[Tensor, Tensor]] = []
    for ids, _ in documents:
        stream = torch.from_numpy(ids if eos is None else np.append(eos, ids))
        # windows overlap by half; each counts the tokens that no earlier one has
        counted = 1
        for start in range(0, len(stream) - 1, max(1, context // 2)):
            end = min(len(stream), start + context + 1)
            labels = stream[start + 1 : end].clone()
            labels[: max(0, counted - start - 1)] = IGNORED
            rows.append((stream[start : end - 1], labels))
            counted = end
            if end == len(stream):
                break
    for i in range(0, len(rows), BATCH):
        inputs, labels = zip(*rows[i : i + BATCH], strict=True)
        yield (
            pad_sequence(list(inputs), batch_first=True),
            pad_sequence(list(labels), batch_first=True, padding_value=IGNORED),
        )


def baselines(source: Windows, documents: Documents) -> dict[str, float]:
    """Bits per byte of {"unigram", "3-gram", "xz"}: the first two counted on the training
    tokens."""
    # n-grams count training text; xz knows no other text than the one it packs
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


def samples(method: GPT, number: int = SAMPLES, length: int = LENGTH) -> list[str]:
    """Texts that the model writes from nothing, always with the same seed."""
    return complete(method, [""] * number, tokens=length, temperature=0.8, top_p=0.95, seed=0)


def parsing_share(texts: Iterable[str]) -> float:
    """Of the lines that are not blank, the share that `ast.parse` reads alone.

    A line that opens a block gets a `pass`.
    """
    # line by line: one error would make a whole generated file unreadable
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
    """BERT on `source`: pseudo-perplexity (arXiv 1910.14659), with every token hidden by itself.

    On prepared text also loss and accuracy at masked tokens, beside the most frequent token.
    """
    view, device, window = masked(method.config), next(method.parameters()).device, method.config.window
    figures = objective(method, view, source) if source.prepared else {}
    summary = [_line(figures)] if figures else []
    total, count = 0.0, 0
    for ids, _ in at_most(source.texts(), PSEUDO):
        for text in torch.from_numpy(ids).split(window):  # t
            nats = method.pseudo_nll(framed(text, method.config).to(device))
            total, count = total + float(nats.double().sum()), count + len(nats)
            if count >= PSEUDO:
                break
    figures["pseudo_perplexity"] = math.exp(min(total / max(1, count), 700))
    summary.append(f"pseudo-perplexity {figures['pseudo_perplexity']:.2f} over {count:,} tokens")
    return {**figures, "summary": summary}


def measure_spans(method: T5, source: Any) -> dict[str, Any]:
    """T5 on prepared text: loss and accuracy at the tokens of removed spans.

    Beside them stands the most frequent of these tokens.     Sentinels and ends are not counted,
    because their order is the same in every target. Raw text has no figures. Raises DataError for
    raw text without labels: nothing can be measured on it.
    """
    if not source.prepared and source.labels is None:
        raise DataError(UNPREPARED)
    if not source.prepared:
        return {"summary": []}
    figures = objective(method, partial(_said, method), source)
    return {**figures, "summary": [_line(figures)]}


def _said(method: T5, sample: Any, rng: np.random.Generator) -> dict[str, Any]:
    """`spans` with sentinels and ends that are no labels, though the decoder reads them."""
    made, c = spans(method.config)(sample, rng), method.config
    labels, first = made["labels"], c.first_sentinel
    assert first is not None
    known = (labels > first - c.sentinels) & (labels <= first) | (labels == c.eos_token_id)
    given = method.shift(labels[None])[0]
    return {**made, "labels": labels.masked_fill(known, IGNORED), "decoder_input_ids": given}


@torch.inference_mode()
def objective(method: Any, view: Any, source: Any, windows: int = 256) -> dict[str, float]:
    """Mean outputs of `forward` over the labels that `view` makes of held-out windows.

    Beside them stands the best constant guess: the accuracy of always saying the most frequent
    label, and the entropy of the labels, which is the lowest loss without looking at the text. Of
    few labels, say forty, it lies below the entropy of the text and measures nothing. Raises
    DataError for less prepared text than a window.
    """
    if len(source.shards) < source.window:
        raise DataError(UNPREPARED)
    device, number = next(method.parameters()).device, min(windows, len(source))
    # the same windows and the same masks for every model
    made = [view(source.load(i), np.random.default_rng((0, i))) for i in range(number)]
    labels = torch.cat([sample["labels"] for sample in made])
    labels = labels[labels != IGNORED]
    sums: dict[str, float] = {}
    for i in range(0, number, BATCH):
        batch = {key: value.to(device) for key, value in collate(made[i : i + BATCH]).items()}
        # a batch weighs as much as its share of the labels
        share = int((batch["labels"] != IGNORED).sum()) / max(1, len(labels))
        for key, value in method(batch, 0.0).items():
            sums[key] = sums.get(key, 0.0) + float(value) * share
    # the best guess that does not look at the text
    p = torch.bincount(labels).double() / max(1, len(labels))
    entropy = float(-(p * p.clamp(min=1e-12).log()).sum())
    return {**sums, "most_frequent_accuracy": float(p.max()), "unigram_entropy": entropy}


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in figures.items())
