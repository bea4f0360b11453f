"""T5: every task as text to text, pretrained by restoring removed spans (arXiv 1910.10683).

    removed    15 % of the tokens in spans of 3 on average, positions and lengths at random
    input      Thank you <X> me to your party <Y> week.
    target     <X> for inviting <Y> last <Z>
    loss       cross-entropy of the target's tokens, sentinels and end too, given those before

Encoder and decoder are pre-norm with RMSNorm and without biases; attention has no 1/√d, one table
of relative positions in buckets serves all blocks of a stack, cross-attention has none. v1.0: ReLU,
and logits = Eᵀ h / √d with the embedding E. v1.1: tanh-GELU gated by a second projection, its own
output matrix, no dropout in pretraining. Initialisation as the authors': E ~ N(0, 1), q ~ N(0,
1/(d·d_kv)), the others N(0, 1/fan-in). `spans.py` removes spans; `loss.py` has the equation of the
loss and its fast form.

Adafactor (arXiv 1804.04235) as the paper has it: steps relative to each tensor's size, without
momentum.

Deviations. The rate falls along half a cosine; the authors hold theirs for 10⁴ steps
(`--min-lr 0.01` holds it). v1.1's output matrix starts from N(0, 1/d), as in the authors' later
code, so that the first loss is near ln V. Documents packed into one row do not see each other; the
authors let them.

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
from ssl_lm.attention import Cache, attend, attention_weights, causal_mask, same_document
from ssl_lm.beam import beam_search, greedy
from ssl_lm.config import T5Config
from ssl_lm.loss import accuracy, count_targets, linear_cross_entropy
from ssl_lm.text_model import TextModel, text_mean
from ssl_lm.tokenizer import settled


def relative_buckets(relative: Tensor, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Bucket of every `relative` position, key minus query.

    Half of the buckets are for single distances, the other half grow logarithmically up to
    `max_distance`. Both directions share them (keys after the query have the upper half), or only
    keys before the query have any.
    """
    upper = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        upper = (relative > 0) * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    # beyond `exact`, buckets are equally wide on a logarithmic scale; the last has no end
    exact = buckets // 2
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (share * (buckets - exact)).long()).clamp(max=buckets - 1)
    return upper + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """softmax(q kᵀ + bias) v, then the output matrix.

    Only a stack's first block has `relative_attention_bias`.
    """

    def __init__(self, config: T5Config, *, positions: bool = False) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        self.heads, self.dropout = config.heads, config.dropout
        self.q, self.k, self.v = (nn.Linear(config.dim, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, config.dim, bias=False)
        if positions:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)
        # attention has no 1/√d: the spread of q makes up for it
        nn.init.normal_(self.q.weight, std=(config.dim * config.head_dim) ** -0.5)
        for part in (self.k, self.v, self.o):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)

    def queries(self, x: Tensor) -> Tensor:
        """(b, h, n, d) of x (b, n, width)."""
        return rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(b, h, n, d) each."""
        k, v = (rearrange(part(x), "b n (h d) -> b h n d", h=self.heads) for part in (self.k, self.v))
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Queries of x (b, n, d) against keys and values (b, h, m, d_kv): (b, n, d).

        x may also be (b·r, 1, d): one token of r hypotheses for each text.
        """
        q = self.queries(x)
        # hypotheses of one text share its keys and values: they become queries side by side
        if several := len(q) != len(k):
            q = rearrange(q, "(b r) h 1 d -> b h r d", b=len(k))
        y = attend(q, k, v, bias, dropout=self.dropout if self.training else 0.0, scale=1.0)
        return self.o(rearrange(y, "b h r d -> (b r) 1 (h d)" if several else "b h n d -> b n (h d)"))


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
        for part in self.children():  # matrices without biases
            nn.init.normal_(part.weight, std=part.in_features**-0.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        return self.wo(F.dropout(x, self.dropout, self.training))


class Sublayer(nn.Module):
    """A part of a block, under the name that checkpoints have for it, and the norm before it."""

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
        """(b, n, d) of x (b, n, d).

        `memory` are keys and values of the encoder's states (None in an encoder), `seen` their
        mask.         `past(k, v)` stores the keys and values of x and returns all so far.
        """
        attention, norm = self.layer[0].SelfAttention, self.layer[0].layer_norm
        h = norm(x)  # pre-norm: the residual stream itself is never normalised
        k, v = attention.keys_values(h)  # b h n d_kv
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
        """The bias of n tokens' attention to each other (1 or b, h, n, n); -inf where `mask` is
        false."""
        # the bias depends on the distance alone: look up all 2n - 1 of them once
        weight, buckets, furthest = self.positions.weight, self.buckets, self.max_distance
        relative = torch.arange(1 - n, n, device=weight.device)
        bucket = relative_buckets(relative, bidirectional=not self.decoder, buckets=buckets, max_distance=furthest)
        # row q is the stretch of distances -q … n - 1 - q: views of one table (h, 2n - 1)
        bias = weight[bucket].T.unfold(1, n, 1).flip(1)[None]  # 1 h n n
        if self.decoder:
            causal = causal_mask(n, n, weight.device)
            mask = causal if mask is None else causal & mask
        return bias if mask is None else bias.masked_fill(~mask, -math.inf)

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """States (b, n, d) of embedded tokens; a decoder sees `memory` (b, m, d) where `seen` is
        true."""
        x = F.dropout(x, self.dropout, self.training)  # b n d
        for block in self.block:
            pairs = None if memory is None else block.layer[1].EncDecAttention.keys_values(memory)
            x = block(x, bias, pairs, seen)
        return F.dropout(self.final_layer_norm(x), self.dropout, self.training)


class Decoding:
    """A decoder that writes, token by token, `rows` = b·r hypotheses for b texts.

    They have up to `length` tokens. It keeps the keys and values of the encoder's `memory`
    (b, m, d), and those of the tokens so far.
    """

    def __init__(self, stack: Stack, memory: Tensor, seen: Tensor, *, rows: int, length: int) -> None:
        self.stack, self.seen = stack, seen
        self.bias = stack.bias(length)
        self.memory = [block.layer[1].EncDecAttention.keys_values(memory) for block in stack.block]
        k, _ = self.memory[0]  # b h m d
        self.own = Cache((len(stack.block), rows, k.shape[1], length, k.shape[3]), like=k)

    def step(self, x: Tensor, rows: Tensor) -> Tensor:
        """States (b·r, 1, d) of one more embedded token; `rows` (b·r,): the hypothesis each
        continues."""
        n = self.own.length
        # a hypothesis takes over the keys and values of the one it continues
        if n and not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            for kept in (self.own.keys, self.own.values):
                kept[..., :n, :] = kept[..., :n, :].index_select(1, rows)
        bias = self.bias[:, :, n : n + 1, : n + 1]  # 1 h 1 n+1
        for i, block in enumerate(self.stack.block):
            x = block(x, bias, self.memory[i], self.seen, partial(self.own.extend, i))
        self.own.length += 1
        return self.stack.final_layer_norm(x)


class T5(TextModel):
    """T5 v1.0 or v1.1, built from a `T5Config`. The names inside are those of transformers."""

    config_class = T5Config
    layout = "ssl_lm.convert:LAYOUTS[t5]"
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

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """{"loss"} of `batch["labels"]` given `batch["input_ids"]`; in eval mode {"accuracy"} too.

        They are (b, o) and (b, n). A label of -100 is ignored. Optional are
        `batch["attention_mask"]` (b, n), 1 at text; `batch["documents"]` (b, n) and
        `batch["label_documents"]` (b, o), which separate packed documents; and
        `batch["decoder_input_ids"]` (b, o), what the decoder reads: by default the labels shifted
        by one.
        """
        tokens, labels = batch["input_ids"], batch["labels"]
        if (read := batch.get("decoder_input_ids")) is None:
            read = self.shift(labels.masked_fill(labels < 0, self.config.pad_token_id))

        # masks of the encoder, of the decoder, and of the decoder's view of the encoder
        seen = batch.get("attention_mask")
        inner = cross = None if seen is None else seen.bool()[:, None, None, :]
        own = None
        if (documents := batch.get("documents")) is not None:
            # what the decoder reads is the token before its target, and belongs to that token's
            # document
            after = self.shift(batch["label_documents"], batch["label_documents"][:, :1])
            inner, own = same_document(documents, documents), same_document(after, after)
            cross = same_document(after, documents)

        memory = self.encoder(self.shared(tokens), self.encoder.bias(tokens.shape[1], inner))  # b n d
        hidden = self.decoder(self.shared(read), self.decoder.bias(labels.shape[1], own), memory, cross)  # b o d
        states, labels = self._scaled(hidden).flatten(0, 1), labels.flatten()  # (b o) d, (b o)
        outputs = {"loss": linear_cross_entropy(states, self.head, labels)}
        if not self.training:
            outputs["accuracy"] = accuracy(F.linear(states, self.head), labels)
        return outputs

    def targets(self, batch: dict[str, Any]) -> int:
        """Tokens that the decoder has to write, over which the loss is a mean."""
        return count_targets(batch["labels"])

    @property
    def head(self) -> Tensor:
        """The output matrix (v, d)."""
        return self.shared.weight if self.config.tied else self.lm_head.weight

    def _scaled(self, hidden: Tensor) -> Tensor:
        """The embedding has a spread of 1: as an output matrix it needs states smaller by √d."""
        return hidden * self.config.dim**-0.5 if self.config.tied else hidden

    def shift(self, labels: Tensor, first: Tensor | None = None) -> Tensor:
        """What the decoder reads to write `labels` (b, o): `first` (b, 1), then all but the last.

        `first` is padding by default.
        """
        if first is None:
            assert self.config.pad_token_id is not None
            first = torch.full_like(labels[:, :1], self.config.pad_token_id)
        return torch.cat([first, labels[:, :-1]], 1)

    def logits(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, o, v) for texts (b, n) and what the decoder reads (b, o).

        `attention_mask` (b, n) is 1 for text, by default what is not padding.
        """
        memory, seen = self.memory(input_ids, attention_mask)
        bias = self.decoder.bias(decoder_input_ids.shape[1])  # 1 h o o
        hidden = self.decoder(self.shared(decoder_input_ids), bias, memory, seen)
        return F.linear(self._scaled(hidden), self.head)

    def memory(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(states (b, n, d) of the encoder, mask (b, 1, 1, n) of the text)."""
        seen = self.text_mask(input_ids, attention_mask)[:, None, None, :]
        return self.encoder(self.shared(input_ids), self.encoder.bias(input_ids.shape[1], seen)), seen

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features (b, d): the mean of the encoder's states over the text."""
        states, seen = self.memory(input_ids, attention_mask)
        return text_mean(states, seen[:, 0, 0])

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """(depth, b, heads, n, n): how much every token looks at every other in the encoder."""
        bias = self.encoder.bias(input_ids.shape[1], self.text_mask(input_ids)[:, None, None, :])
        x, maps = self.shared(input_ids), []
        for block in self.encoder.block:
            attention, h = block.layer[0].SelfAttention, block.layer[0].layer_norm(x)  # b n d
            maps.append(attention_weights(attention.queries(h), attention.keys_values(h)[0], bias, scale=1.0))
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

        One beam takes the most likely token at every step; more are `ssl_lm.beam.beam_search`. The
        encoder runs once; its keys and values and those of the tokens so far are kept. Raises
        InputError for less than one token or beam.
        """
        if min(max_new_tokens, num_beams) < 1:
            raise InputError(f"max_new_tokens {max_new_tokens}, num_beams {num_beams}: both must be at least 1")
        pad, eos = self.config.pad_token_id, self.config.eos_token_id
        assert pad is not None and eos is not None
        with self.evaluating():
            memory, seen = self.memory(input_ids, attention_mask)
            b = len(memory)
            decoding = Decoding(self.decoder, memory, seen, rows=b * num_beams, length=max_new_tokens)

            def step(tokens: Tensor, rows: Tensor) -> Tensor:
                hidden = decoding.step(self.shared(tokens)[:, None], rows)  # (b r) 1 d
                return F.linear(self._scaled(hidden[:, 0]), self.head)  # (b r) v

            # the decoder starts with the pad token
            start = torch.full((b,), pad, device=memory.device)
            if num_beams == 1:
                return greedy(step, start, length=max_new_tokens, eos=eos, pad=pad)
            return beam_search(
                step, start, beams=num_beams, length=max_new_tokens, eos=eos, pad=pad, length_penalty=length_penalty
            )
