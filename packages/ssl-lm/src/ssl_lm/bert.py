"""BERT: bidirectional Transformer encoders by masked language modelling (arXiv 1810.04805).

    selected   15 % of a sequence's ordinary tokens, drawn anew every time it is read
    input      of those 80 % [MASK], 10 % another ordinary token, 10 % unchanged
    loss       cross-entropy of the selected tokens under  softmax(LN(gelu(W h)) · Eᵀ + b),  E the word embeddings

Post-norm blocks, learned positions, LayerNorm eps 1e-12, exact GELU; every matrix starts from N(0, 0.02²)
(`init_std`), every bias at 0. The head sees the selected positions only: logits of the others are never made.

Deviations. Masks are dynamic and there is no next-sentence task (RoBERTa, arXiv 1907.11692, found both better); a
random replacement is never a special token, where the authors' code draws from the whole vocabulary. Documents packed
into one row do not see each other, and positions begin anew with each. Sentence pairs are read (`token_type_ids`),
not trained on. AdamW's eps is 1e-8, not 1e-6.

Expected (the paper, table 1): BERT-base 79.6, BERT-large 82.1 mean GLUE score after fine-tuning. Not run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core.errors import InputError
from ssl_core.hub.layout import Layout
from ssl_lm.attention import attend, attention_weights
from ssl_lm.config import BERTConfig
from ssl_lm.loss import IGNORED, linear_cross_entropy, linear_nll
from ssl_lm.text_model import TextModel, init_weights, text_mean
from ssl_lm.tokenizer import settled

NEVER = 2.0  # above every uniform draw


def mask_tokens(
    input_ids: Tensor,
    *,
    vocab_size: int,
    mask_token_id: int,
    special_ids: Sequence[int],
    rate: float = 0.15,
    count: int | None = None,
    words: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """BERT's corruption of (b, t) tokens -> (inputs, labels), labels -100 where nothing is to be predicted.

    Of every row's tokens that are not in `special_ids`, `rate` are selected, at least one: the product is rounded up or
    down at random, so that its mean is exact. `count` fixes the number instead. With `words` (b, t), the number of the
    word that a token belongs to (-1: none), whole words are selected in random order, and one that would exceed the
    number is passed over (whole-word masking of the authors' later code).
    80 % of the selected become `mask_token_id`, 10 % a random ordinary token, 10 % stay; each token for itself.
    Raises InputError for tokens outside the vocabulary and for a row of special tokens only.
    """
    b, t = input_ids.shape
    draw = lambda *shape: torch.rand(shape, generator=generator, device=input_ids.device)  # noqa: E731
    if input_ids.min() < 0 or input_ids.max() >= vocab_size:
        raise InputError(f"tokens {int(input_ids.min())} … {int(input_ids.max())} of a vocabulary of {vocab_size}: "
                         "another tokenizer made them")  # fmt: skip
    ordinary = torch.ones(vocab_size, dtype=torch.bool, device=input_ids.device)
    ordinary[torch.as_tensor([*special_ids, mask_token_id], device=input_ids.device)] = False
    maskable = ordinary[input_ids]
    available = maskable.sum(1)
    if not available.all():
        raise InputError("a sequence holds special tokens only: there is nothing to mask, leave it out")
    wanted = torch.full((b,), count, device=input_ids.device) if count else (rate * available + draw(b)).floor().long()
    wanted = torch.minimum(wanted.clamp(min=1), available)
    if words is None:
        rank = draw(b, t).masked_fill(~maskable, NEVER).argsort(1).argsort(1)
        selected = rank < wanted[:, None]
    else:
        selected = _select_words(words.masked_fill(~maskable, -1), wanted, draw(b, t))
    roll, choices = draw(b, t), ordinary.nonzero()[:, 0]
    other = choices[torch.randint(len(choices), (b, t), generator=generator, device=input_ids.device)]
    inputs = torch.where(selected & (roll < 0.8), mask_token_id, input_ids)
    inputs = torch.where(selected & (roll >= 0.8) & (roll < 0.9), other, inputs)
    return inputs, input_ids.masked_fill(~selected, IGNORED)


def _select_words(words: Tensor, wanted: Tensor, noise: Tensor) -> Tensor:
    """Tokens (b, t) of whole words: in the order of `noise`, every word that still fits into `wanted` (b) tokens.

    A row whose every word is longer than that gives its shortest one, so that no row is left without a target.
    """
    b, t = words.shape
    column = words + 1  # 0 collects what belongs to no word
    lengths = words.new_zeros(b, t + 1).scatter_add_(1, column, torch.ones_like(column))
    lengths[:, 0] = 0
    shortest = lengths.masked_fill(lengths == 0, t + 1).amin(1)
    room = torch.maximum(wanted, shortest)[:, None]
    order = F.pad(noise, (1, 0)).argsort(1)
    left = lengths.gather(1, order)  # b w, lengths in random order, 0 for words that are passed over
    while True:
        filled = left.cumsum(1)
        over = filled > room
        if not over.any():
            break
        first = over.int().argmax(1, keepdim=True)
        free = room - (filled - left).gather(1, first)  # what the words before the first that does not fit leave
        passed = (torch.arange(t + 1, device=words.device) >= first) & (left > free) & over.any(1, keepdim=True)
        left = left.masked_fill(passed, 0)
    chosen = torch.zeros_like(left, dtype=torch.bool).scatter_(1, order, left > 0)
    return chosen.gather(1, column) & (words >= 0)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labels (n,) that are not -100 whose token has the largest of its logits (n, v)."""
    counted = labels != IGNORED
    return ((logits.argmax(-1) == labels) & counted).sum() / counted.sum().clamp(min=1)


def word_starts(tokenizer: Any) -> Tensor:
    """Of every token of a vocabulary, whether it begins a word: bool (v,).

    WordPiece marks what continues a word ("##"), byte-level BPE and SentencePiece what begins one ("Ġ", "▁").
    """
    words = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1])
    pieces = any(word.startswith("##") for word, _ in words)
    return torch.tensor([not word.startswith("##") if pieces else word[:1] in "ĠĊ▁" for word, _ in words])


class WithWords:
    """Prepared text whose samples have "words" too: the number of the word that each token belongs to. A document
    begins with a word."""

    def __init__(self, source: Any, starts: Tensor) -> None:
        self.source, self.starts = source, starts

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> dict[str, Any]:
        sample = self.source.load(index)
        first = sample["documents"].diff(prepend=sample["documents"][:1] - 1) != 0
        return {**sample, "words": (self.starts[sample["input_ids"]] | first).cumsum(0)}

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not there yet: pickle looks for methods of an empty copy
            raise AttributeError(name)
        return getattr(self.source, name)


def same_document(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention mask (b, 1, q, k), True where a query (b, q) and a key (b, k) belong to the same document."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def document_positions(documents: Tensor) -> Tensor:
    """Positions (b, t) that begin at 0 with every document of a packed row (b, t)."""
    steps = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return steps - (steps * begins).cummax(1).values


class SelfAttention(nn.Module):
    """Query, key and value projections and the product of them."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query, self.key, self.value = (nn.Linear(config.dim, config.dim) for _ in range(3))

    def split(self, x: Tensor) -> list[Tensor]:
        parts = (self.query(x), self.key(x), self.value(x))
        return [rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.split(x)
        x = attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0)
        return rearrange(x, "b h n d -> b n (h d)")


class AddNorm(nn.Module):
    """LN(residual + dropout(W x)): the end of both halves of a block."""

    def __init__(self, config: BERTConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + F.dropout(self.dense(x), self.dropout, self.training))


class Block(nn.Module):
    """Attention and MLP, normalised after each residual sum."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": AddNorm(config, config.dim)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.dim, config.mlp_width)})
        self.output = AddNorm(config, config.mlp_width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Embeddings(nn.Module):
    """Word, position and type embeddings, summed and normalised."""

    def __init__(self, config: BERTConfig, vocabulary: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, config.dim)
        self.position_embeddings = nn.Embedding(config.context, config.dim)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, input_ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        kind = self.token_type_embeddings.weight[0] if types is None else self.token_type_embeddings(types)
        x = self.word_embeddings(input_ids) + kind + self.position_embeddings(positions)
        return F.dropout(self.LayerNorm(x), self.dropout, self.training)


class Head(nn.Module):
    """What turns a hidden state (…, d) into the vector whose product with the word embeddings is the logits."""

    def __init__(self, config: BERTConfig, vocabulary: int) -> None:
        super().__init__()
        dense, norm = nn.Linear(config.dim, config.dim), nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.transform = nn.ModuleDict({"dense": dense, "LayerNorm": norm})
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.transform["LayerNorm"](F.gelu(self.transform["dense"](hidden)))


class BERT(TextModel):
    """BERT with its masked-language-model head, built from a `BERTConfig`; names inside are transformers'."""

    config_class = BERTConfig
    config: BERTConfig
    bert: Any
    cls: Any
    accumulates = True
    settles = True

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        vocabulary = settled(config)
        layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        embeddings = Embeddings(config, vocabulary)
        self.bert = nn.ModuleDict({"embeddings": embeddings, "encoder": nn.ModuleDict({"layer": layers})})
        self.cls = nn.ModuleDict({"predictions": Head(config, vocabulary)})
        self.apply(partial(init_weights, std=config.init_std))

    @classmethod
    def layout(cls) -> Layout:
        from ssl_lm.convert import BERT_LAYOUT

        return BERT_LAYOUT

    def attach(self, source: Any) -> Any:
        """`source` with this model's tokenizer; prepared text for whole-word masking with the words of its tokens."""
        source = super().attach(source)
        wanted = self.config.whole_words and source.prepared
        return WithWords(source, word_starts(source.tokenizer)) if wanted else source

    @property
    def word_embeddings(self) -> Tensor:
        """(v, d), which is the output matrix too."""
        return self.bert["embeddings"].word_embeddings.weight

    def hidden(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """States (b, t, d) of tokens (b, t) after the last block. `mask` broadcasts to (b, heads, t, t), True = seen.

        Raises InputError when a row is longer than the context.
        """
        t = input_ids.shape[1]
        if t > self.config.context:
            raise InputError(f"{t} tokens, the model reads {self.config.context}: cut the text")
        if positions is None:
            positions = torch.arange(t, device=input_ids.device)[None]
        x = self.bert["embeddings"](input_ids, positions, token_type_ids)
        for block in self.bert["encoder"]["layer"]:
            x = block(x, mask)
        return x

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss at the selected tokens of `batch["input_ids"]` (b, t); in eval mode the share that is guessed, too.

        `batch["labels"]` (b, k) are the true tokens at `batch["positions"]` (b, k), or (b, t) where there are no
        positions; -100 is ignored. `batch["documents"]` (b, t), where given, separates packed documents.
        """
        mask = positions = None
        if (documents := batch.get("documents")) is not None:
            mask, positions = same_document(documents, documents), document_positions(documents)
        hidden = self.hidden(batch["input_ids"], mask, positions=positions)  # b t d
        if (selected := batch.get("positions")) is not None:
            hidden = hidden.gather(1, selected[..., None].expand(-1, -1, hidden.shape[-1]))  # b k d
        head = self.cls["predictions"]
        states = head(hidden).flatten(0, 1)
        labels = batch["labels"].flatten()
        outputs = {"loss": linear_cross_entropy(states, self.word_embeddings, labels, head.bias)}
        if not self.training:
            outputs["accuracy"] = accuracy(F.linear(states, self.word_embeddings, head.bias), labels)
        return outputs

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(b, t, v) for tokens (b, t); `attention_mask` (b, t) is 1 for text, by default what is not padding."""
        hidden = self.hidden(input_ids, self._seen(input_ids, attention_mask), token_type_ids=token_type_ids)
        head = self.cls["predictions"]
        return F.linear(head(hidden), self.word_embeddings, head.bias)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features (b, d): the mean over the text of the last states."""
        mask = self._seen(input_ids, attention_mask)
        return text_mean(self.hidden(input_ids, mask), mask[:, 0, 0])

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """(depth, b, heads, t, t): how much every token looks at every other, in every block."""
        mask, t = self._seen(input_ids, None), input_ids.shape[1]
        x, maps = self.bert["embeddings"](input_ids, torch.arange(t, device=input_ids.device)[None], None), []
        for block in self.bert["encoder"]["layer"]:
            q, k, _ = block.attention["self"].split(x)
            maps.append(attention_weights(q, k, mask))
            x = block(x, mask)
        return torch.stack(maps)

    @torch.inference_mode()
    def fill(self, input_ids: Tensor, top_k: int = 5) -> tuple[Tensor, Tensor]:
        """(probabilities, tokens), each (m, k), of the m masks in (b, t) tokens, in reading order.

        Raises InputError when there is no mask.
        """
        masked = input_ids == self.config.mask_token_id
        if not masked.any():
            raise InputError("there is no mask to fill: write [MASK] where a word is missing")
        values, tokens = self.logits(input_ids)[masked].float().softmax(-1).topk(top_k)
        return values, tokens

    @torch.inference_mode()
    def pseudo_nll(self, input_ids: Tensor, batch_size: int = 64) -> Tensor:
        """-log p(token | all others) of every ordinary token of one text (t,), each masked in turn (arXiv 1910.14659).

        exp of the mean is the pseudo-perplexity. Raises InputError for a model without a mask token.
        """
        mask = self.config.mask_token_id
        if mask is None:
            raise InputError("the model's tokenizer has no mask token")
        special = torch.tensor(self.config.special_ids, device=input_ids.device)
        places = (~torch.isin(input_ids, special)).nonzero()[:, 0]
        parts = []
        for chunk in places.split(batch_size):
            rows = torch.arange(len(chunk), device=chunk.device)
            inputs = input_ids.repeat(len(chunk), 1)
            inputs[rows, chunk] = mask
            head = self.cls["predictions"]
            hidden = self.hidden(inputs, self._seen(inputs, None))[rows, chunk]
            parts.append(linear_nll(head(hidden), self.word_embeddings, input_ids[chunk], head.bias))
        return torch.cat(parts) if parts else input_ids.new_zeros(0, dtype=torch.float32)

    def _seen(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        text = self.is_text(input_ids) if attention_mask is None else attention_mask.bool()
        return text[:, None, None, :]
