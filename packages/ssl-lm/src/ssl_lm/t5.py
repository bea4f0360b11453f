"""T5: every task as text to text, pretrained by restoring removed spans (arXiv 1910.10683).

    removed    15 % of the tokens in spans of 3 on average, positions and lengths at random
    input      Thank you <X> me to your party <Y> week.
    target     <X> for inviting <Y> last <Z>
    loss       cross-entropy of every target token, sentinels and end included, given those before it

Encoder and decoder are pre-norm with RMSNorm and without biases; attention has no 1/√d, one table of relative
positions in buckets serves all blocks of a stack, cross-attention has none. v1.0: ReLU, and logits = Eᵀ h / √d with the
embedding E. v1.1: tanh-GELU gated by a second projection, its own output matrix, no dropout in pretraining.
Initialisation as the authors': E ~ N(0, 1), q ~ N(0, 1/(d·d_kv)), the others N(0, 1/fan-in).

Adafactor (arXiv 1804.04235) as the paper has it: steps relative to each tensor's size, without momentum.

Deviations. Half a cosine from the rate that the authors hold for 10⁴ steps (`--min-lr 0.01` holds it). v1.1's output
matrix starts from N(0, 1/d), as in the authors' later code, so that the first loss is near ln V. Documents packed into
one row do not see each other; the authors let them. A mask that begins with a removed token gives a target whose first
sentinel says so, and can be inverted; those that `noise_spans` draws begin with a kept one and give the authors' result.

Expected (the paper, table 14): T5-small/base/large 77.4/82.7/86.4 on GLUE. Not run here.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core.errors import InputError
from ssl_core.hub.layout import Layout
from ssl_lm.attention import Cache, attend, attention_weights, causal_mask
from ssl_lm.beam import beam_search, trimmed
from ssl_lm.bert import accuracy, same_document
from ssl_lm.config import T5Config, removed, span_count
from ssl_lm.loss import linear_cross_entropy
from ssl_lm.text_model import TextModel, text_mean
from ssl_lm.tokenizer import settled


def noise_spans(
    rows: int,
    length: int,
    *,
    density: float = 0.15,
    mean_span: float = 3.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which tokens are removed: bool (rows, length), True = removed (`random_spans_noise_mask` of the authors' code).

    Every row loses the same number of tokens in the same number of spans: n = round(density · length) tokens, at least
    one and not all, in round(n / mean_span) spans. The lengths of removed and of kept spans are two independent random
    partitions; they alternate, a kept one first. Raises InputError for less than two tokens.
    """
    if length < 2:
        raise InputError(f"{length} tokens: of at least two one can be removed")
    noise = removed(length, density)
    spans = span_count(length, density, mean_span)
    kept = _partition(rows, length - noise, spans, generator, device)
    gone = _partition(rows, noise, spans, generator, device)
    ends = torch.stack([kept, gone], 2).flatten(1).cumsum(1)  # b 2s
    places = torch.arange(length, device=device).expand(rows, length).contiguous()
    return torch.searchsorted(ends, places, right=True) % 2 == 1


def _partition(rows: int, items: int, parts: int, generator: torch.Generator | None, device: Any) -> Tensor:
    """Lengths (rows, parts) ≥ 1 that sum to `items`: a uniform choice of the parts - 1 places to cut."""
    noise = torch.rand(rows, items - 1, generator=generator, device=device)
    cuts = noise.argsort(1)[:, : parts - 1].sort(1).values + 1
    edges = torch.cat([cuts.new_zeros(rows, 1), cuts, cuts.new_full((rows, 1), items)], 1)
    return edges.diff(dim=1)


def corrupt_spans(
    input_ids: Tensor,
    noise_mask: Tensor,
    *,
    first_sentinel: int,
    eos_token_id: int = 1,
    pad_token_id: int = 0,
    sentinels: int = 100,
) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of (b, t) tokens: each removed span becomes a sentinel, the target tells what each stood for.

    Sentinels count down from `first_sentinel` (<extra_id_0>; 32099 in T5's vocabulary). Where kept tokens follow the
    last removed span, a closing sentinel ends the target, as in the paper's figure 2; both end with `eos_token_id`.
    Rows of different lengths are filled up with `pad_token_id`.
    Raises InputError when a row needs more than the `sentinels` there are, or already holds one.
    """
    order = _spans(noise_mask)[1]
    used = order[:, -1] + 1 + ~noise_mask[:, -1]
    if used.max() > sentinels:
        raise InputError(f"{int(used.max())} sentinels for the spans of a row, the vocabulary has {sentinels}: shorter "
                         "texts, a lower density or longer spans")  # fmt: skip
    if ((input_ids > first_sentinel - sentinels) & (input_ids <= first_sentinel)).any():
        raise InputError("the text holds sentinels already: another tokenizer made it, or it was corrupted before")
    sentinel = first_sentinel - order
    end = input_ids.new_full((len(input_ids), 1), eos_token_id)
    return _split(input_ids, noise_mask, sentinel, sentinel[:, -1:] - 1, end, pad_token_id)


def corrupt_documents(documents: Tensor, noise_mask: Tensor) -> tuple[Tensor, Tensor]:
    """`corrupt_spans` of the documents (b, t) that tokens belong to: those of the inputs' and of the targets' tokens.

    A sentinel belongs to the document of its span's first token, the end to the last document; padding is -1.
    """
    last = documents[:, -1:]
    return _split(documents, noise_mask, documents, last, last, -1)


def _spans(noise: Tensor) -> tuple[Tensor, Tensor]:
    """(where removed spans begin, the number of the span that began last), both (b, t)."""
    starts = noise & ~F.pad(noise, (1, 0))[:, :-1]
    return starts, starts.cumsum(1) - 1


def _split(
    values: Tensor, noise: Tensor, sentinel: Tensor, closing: Tensor, end: Tensor, pad: int
) -> tuple[Tensor, Tensor]:
    """The two sides of a corruption; `sentinel` (b, t) stands for the span that begins there."""
    starts, _ = _spans(noise)
    always = noise.new_ones(len(noise), 1)
    inputs = torch.cat([torch.where(starts, sentinel, values), end], 1)
    seen = torch.cat([~noise | starts, always], 1)
    targets = torch.cat([torch.stack([sentinel, values], 2).flatten(1), closing, end], 1)  # b 2t+2
    said = torch.cat([torch.stack([starts, noise], 2).flatten(1), ~noise[:, -1:], always], 1)
    return _compact(inputs, seen, pad), _compact(targets, said, pad)


def _compact(values: Tensor, keep: Tensor, pad: int) -> Tensor:
    """The kept values of every row (b, n) moved together, filled up with `pad` to the longest row."""
    place = keep.cumsum(1) - 1
    row = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
    out = values.new_full((len(values), int(keep.sum(1).max())), pad)
    out[row[keep], place[keep]] = values[keep]
    return out


def relative_buckets(relative: Tensor, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Bucket of every `relative` position, key minus query.

    Half of the buckets are for single distances, the other half grow logarithmically up to `max_distance`. Both
    directions share them (keys after the query have the upper half), or only keys before the query have any.
    """
    upper = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        upper = (relative > 0) * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (share * (buckets - exact)).long()).clamp(max=buckets - 1)
    return upper + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """softmax(q kᵀ + bias) v; `relative_attention_bias` only in a stack's first block."""

    def __init__(self, config: T5Config, *, positions: bool = False) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        self.heads, self.dropout = config.heads, config.dropout
        self.q, self.k, self.v = (nn.Linear(config.dim, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, config.dim, bias=False)
        if positions:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)
        for part, variance in ((self.q, config.dim * config.head_dim), (self.k, config.dim), (self.v, config.dim),
                               (self.o, width)):  # fmt: skip
            nn.init.normal_(part.weight, std=variance**-0.5)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(b, h, n, d) each."""
        k, v = (rearrange(part(x), "b n (h d) -> b h n d", h=self.heads) for part in (self.k, self.v))
        return k, v

    def weights(self, x: Tensor, bias: Tensor) -> Tensor:
        """The softmax matrix of x (b, n, d) with itself, (b, h, n, n)."""
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)
        return attention_weights(q, self.keys_values(x)[0], bias, scale=1.0)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Queries of x (b, n, d) against keys and values; of one text's several hypotheses (b·m, 1, d) too."""
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)
        if several := len(q) != len(k):
            q = rearrange(q, "(b m) h 1 d -> b h m d", b=len(k))
        y = attend(q, k, v, bias, dropout=self.dropout if self.training else 0.0, scale=1.0)
        return self.o(rearrange(y, "b h m d -> (b m) 1 (h d)" if several else "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """ReLU MLP (v1.0), or tanh-GELU gated by a second projection (v1.1)."""

    wi: Any
    wi_0: Any
    wi_1: Any

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated, self.dropout = config.gated, config.dropout
        for name in ("wi_0", "wi_1") if config.gated else ("wi",):
            self.add_module(name, nn.Linear(config.dim, config.hidden, bias=False))
        self.wo = nn.Linear(config.hidden, config.dim, bias=False)
        for part in self.children():
            nn.init.normal_(part.weight, std=part.in_features**-0.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        return self.wo(F.dropout(x, self.dropout, self.training))


class Sublayer(nn.Module):
    """A part of a block, with the norm before it, under the name that checkpoints have for it."""

    def __init__(self, config: T5Config, name: str, part: nn.Module) -> None:
        super().__init__()
        self.add_module(name, part)
        self.layer_norm = nn.RMSNorm(config.dim, eps=config.layer_norm_eps)


class Block(nn.Module):
    """Self-attention, in a decoder cross-attention, and the MLP, each added to its input."""

    layer: Any

    def __init__(self, config: T5Config, *, decoder: bool, first: bool) -> None:
        super().__init__()
        self.dropout = config.dropout
        parts = [Sublayer(config, "SelfAttention", Attention(config, positions=first))]
        if decoder:
            parts.append(Sublayer(config, "EncDecAttention", Attention(config)))
        self.layer = nn.ModuleList([*parts, Sublayer(config, "DenseReluDense", Mlp(config))])

    def forward(self, x: Tensor, bias: Tensor, memory: Any, seen: Tensor | None, past: Any = None) -> Tensor:
        """x (b, n, d). `memory` are keys and values of the encoder's states, None in an encoder, `seen` their mask;
        `past(k, v)` stores those of x and returns all so far."""
        attention, norm = self.layer[0].SelfAttention, self.layer[0].layer_norm
        h = norm(x)
        k, v = attention.keys_values(h)
        x = x + self._drop(attention(h, *(past(k, v) if past else (k, v)), bias))
        if memory is not None:
            attention, norm = self.layer[1].EncDecAttention, self.layer[1].layer_norm
            x = x + self._drop(attention(norm(x), *memory, seen))
        mlp, norm = self.layer[-1].DenseReluDense, self.layer[-1].layer_norm
        return x + self._drop(mlp(norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Stack(nn.Module):
    """Encoder or decoder."""

    block: Any

    def __init__(self, config: T5Config, depth: int, *, decoder: bool) -> None:
        super().__init__()
        self.decoder, self.dropout = decoder, config.dropout
        self.buckets, self.max_distance = config.buckets, config.max_distance
        self.block = nn.ModuleList(Block(config, decoder=decoder, first=i == 0) for i in range(depth))
        self.final_layer_norm = nn.RMSNorm(config.dim, eps=config.layer_norm_eps)
        nn.init.normal_(self.positions.weight, std=config.dim**-0.5)

    @property
    def positions(self) -> nn.Embedding:
        return self.block[0].layer[0].SelfAttention.relative_attention_bias

    def bias(self, n: int, mask: Tensor | None = None) -> Tensor:
        """What is added to the products of n tokens with each other, (1 or b, h, n, n); -inf where nothing is seen."""
        weight = self.positions.weight
        relative = torch.arange(1 - n, n, device=weight.device)
        bucket = relative_buckets(
            relative, bidirectional=not self.decoder, buckets=self.buckets, max_distance=self.max_distance
        )
        # row q of the table is the stretch of distances -q … n - 1 - q
        bias = weight[bucket].T.unfold(1, n, 1).flip(1)[None]  # 1 h n n
        if self.decoder:
            causal = causal_mask(n, n, weight.device)
            mask = causal if mask is None else causal & mask
        return bias if mask is None else bias.masked_fill(~mask, -math.inf)

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """States (b, n, d) of embedded tokens; a decoder looks at `memory` (b, m, d) where `seen` is True."""
        x = F.dropout(x, self.dropout, self.training)
        for block in self.block:
            pairs = None if memory is None else block.layer[1].EncDecAttention.keys_values(memory)
            x = block(x, bias, pairs, seen)
        return F.dropout(self.final_layer_norm(x), self.dropout, self.training)


class Decoding:
    """A decoder that says up to `length` tokens of m hypotheses to each of b texts, one at a time, with what it keeps:
    keys and values of the encoder's `memory` (b, n, d), and those of the tokens so far."""

    def __init__(self, stack: Stack, memory: Tensor, seen: Tensor, *, rows: int, length: int) -> None:
        self.stack, self.seen = stack, seen
        self.bias = stack.bias(length)
        self.memory = [block.layer[1].EncDecAttention.keys_values(memory) for block in stack.block]
        k, _ = self.memory[0]
        self.own = Cache(
            depth=len(stack.block), batch=rows, heads=k.shape[1], room=length, head_dim=k.shape[3],
            dtype=k.dtype, device=k.device,
        )  # fmt: skip

    def step(self, x: Tensor, rows: Tensor) -> Tensor:
        """States (b·m, 1, d) of one more embedded token; `rows` (b·m,) says which hypothesis each continues."""
        n = self.own.length
        if n and not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            for kept in (self.own.keys, self.own.values):
                kept[..., :n, :] = kept[..., :n, :].index_select(1, rows)
        bias = self.bias[:, :, n : n + 1, : n + 1]
        for i, block in enumerate(self.stack.block):
            x = block(x, bias, self.memory[i], self.seen, partial(self.own.extend, i))
        self.own.length += 1
        return self.stack.final_layer_norm(x)


class T5(TextModel):
    """T5 v1.0 or v1.1, built from a `T5Config`; names inside are transformers'. The decoder starts with the pad token."""

    config_class = T5Config
    config: T5Config
    accumulates = True
    settles = True

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        vocab_size = settled(config)
        self.shared = nn.Embedding(vocab_size, config.dim)
        self.encoder = Stack(config, config.depth, decoder=False)
        self.decoder = Stack(config, config.decoder_depth, decoder=True)
        if not config.tied:
            self.lm_head = nn.Linear(config.dim, vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=config.dim**-0.5)

    @classmethod
    def layout(cls) -> Layout:
        from ssl_lm.convert import T5_LAYOUT

        return T5_LAYOUT

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of `batch["labels"]` (b, o) given `batch["input_ids"]` (b, n), -100 is ignored; in eval mode the share of
        tokens that is guessed, too.

        `batch["documents"]` (b, n) and `batch["label_documents"]` (b, o), where given, separate packed documents;
        `batch["attention_mask"]` (b, n), where given, is 1 for text; `batch["decoder_input_ids"]` (b, o) is what the
        decoder reads, by default the labels shifted by one.
        """
        labels, seen = batch["labels"], batch.get("attention_mask")
        inner = cross = None if seen is None else seen.bool()[:, None, None, :]
        own = None
        if (documents := batch.get("documents")) is not None:
            # a target belongs to the document of the token before it, which the decoder reads there
            after = self.shift(batch["label_documents"], batch["label_documents"][:, :1])
            inner, own, cross = (same_document(q, k) for q, k in
                                 ((documents, documents), (after, after), (after, documents)))  # fmt: skip
        memory = self.encoder(self.shared(batch["input_ids"]), self.encoder.bias(batch["input_ids"].shape[1], inner))
        if (inputs := batch.get("decoder_input_ids")) is None:
            inputs = self.shift(labels.masked_fill(labels < 0, self.config.pad_token_id))
        hidden = self.decoder(self.shared(inputs), self.decoder.bias(labels.shape[1], own), memory, cross)
        states, labels = self._scaled(hidden).flatten(0, 1), labels.flatten()
        outputs = {"loss": linear_cross_entropy(states, self.head, labels)}
        if not self.training:
            outputs["accuracy"] = accuracy(F.linear(states, self.head), labels)
        return outputs

    @property
    def head(self) -> Tensor:
        """The output matrix (v, d)."""
        return self.shared.weight if self.config.tied else self.lm_head.weight

    def shift(self, labels: Tensor, first: Tensor | None = None) -> Tensor:
        """What the decoder reads to say `labels` (b, o): the token before each, the pad token (or `first`) at first."""
        if first is None:
            assert self.config.pad_token_id is not None
            first = torch.full_like(labels[:, :1], self.config.pad_token_id)
        return torch.cat([first, labels[:, :-1]], 1)

    def logits(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, o, v) for texts (b, n) and what the decoder reads (b, o).

        `attention_mask` (b, n) is 1 for text, by default what is not padding.
        """
        memory, seen = self.memory(input_ids, attention_mask)
        bias = self.decoder.bias(decoder_input_ids.shape[1])
        hidden = self.decoder(self.shared(decoder_input_ids), bias, memory, seen)
        return F.linear(self._scaled(hidden), self.head)

    def memory(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(states (b, n, d) of the encoder, mask (b, 1, 1, n) of the text)."""
        text = self.is_text(input_ids) if attention_mask is None else attention_mask.bool()
        seen = text[:, None, None, :]
        return self.encoder(self.shared(input_ids), self.encoder.bias(input_ids.shape[1], seen)), seen

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features (b, d): the mean over the text of the encoder's states."""
        states, seen = self.memory(input_ids, attention_mask)
        return text_mean(states, seen[:, 0, 0])

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """(depth, b, heads, n, n) of the encoder: how much every token looks at every other, in every block."""
        bias = self.encoder.bias(input_ids.shape[1], self.is_text(input_ids)[:, None, None, :])
        x, maps = self.shared(input_ids), []
        for block in self.encoder.block:
            attention, norm = block.layer[0].SelfAttention, block.layer[0].layer_norm
            maps.append(attention.weights(norm(x), bias))
            x = block(x, bias, None, None)
        return torch.stack(maps)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        num_beams: int = 4,
        length_penalty: float = 1.0,
    ) -> Tensor:
        """Answers (b, n ≤ max_new_tokens) to texts (b, m): tokens up to the end, then padding.

        One beam is greedy; more are `ssl_lm.beam.beam_search`. The encoder runs once, its keys and values and those of
        the tokens so far are kept. Raises InputError for less than one token or beam.
        """
        if min(max_new_tokens, num_beams) < 1:
            raise InputError(f"max_new_tokens {max_new_tokens}, num_beams {num_beams}: both must be at least 1")
        training = self.training
        self.eval()
        try:
            return self._answers(*self.memory(input_ids, attention_mask), max_new_tokens, num_beams, length_penalty)
        finally:
            self.train(training)

    def _answers(self, memory: Tensor, seen: Tensor, length: int, beams: int, length_penalty: float) -> Tensor:
        b, device = len(memory), memory.device
        decoding = Decoding(self.decoder, memory, seen, rows=b * beams, length=length)

        def step(tokens: Tensor, rows: Tensor) -> Tensor:
            hidden = decoding.step(self.shared(tokens)[:, None], rows)
            return F.linear(self._scaled(hidden[:, 0]), self.head)

        pad, eos = self.config.pad_token_id, self.config.eos_token_id
        assert pad is not None and eos is not None
        if beams == 1:
            return _greedy(step, b, length, pad, eos, device)
        return beam_search(
            step, batch=b, beams=beams, length=length, start=pad, eos=eos, pad=pad, length_penalty=length_penalty,
            device=device,
        )  # fmt: skip

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden * self.config.dim**-0.5 if self.config.tied else hidden


def _greedy(step: Any, rows: int, length: int, start: int, eos: int, device: torch.device) -> Tensor:
    """The most probable token at every step, (b, n ≤ length)."""
    tokens = torch.full((rows,), start, device=device)
    same, over, said = torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.bool, device=device), []
    for _ in range(length):
        tokens = step(tokens, same).argmax(-1)
        said.append(tokens)
        over |= tokens == eos
        if over.all():
            break
    return trimmed(torch.stack(said, 1), eos, start)
