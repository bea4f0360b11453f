"""BERT: bidirectional Transformer encoders by masked language modelling (arXiv 1810.04805).

    selected   15 % of a sequence's ordinary tokens, drawn anew every time it is read
    input      of those 80 % [MASK], 10 % another ordinary token, 10 % unchanged
    loss       cross-entropy of the selected tokens under  softmax(LN(gelu(W h)) · Eᵀ + b)

E are the word embeddings. Post-norm blocks, learned positions, LayerNorm eps 1e-12, exact GELU;
every matrix starts from N(0, 0.02²) (`init_std`), every bias at 0. The head sees the selected
positions only: logits of the others are never built. `masking.py` selects and replaces; `loss.py`
has the equation of the loss and its fast form.

Deviations. Masks are dynamic and there is no next-sentence task (RoBERTa, arXiv 1907.11692, found
both better). A random replacement is never a special token; the authors' code draws from the whole
vocabulary. Documents packed into one row do not see each other, and positions start again with
each. Sentence pairs are read (`token_type_ids`), not trained on. The learning rate falls along half
a cosine, theirs linearly. Weights start from a whole normal distribution, theirs is cut at two
standard deviations. AdamW's eps is 1e-8, not 1e-6.

Expected (the paper, table 1): BERT-base 79.6, BERT-large 82.1 mean GLUE score after fine-tuning.
Not run here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core.errors import InputError
from ssl_lm.attention import attend, attention_weights, document_positions, same_document
from ssl_lm.config import BERTConfig
from ssl_lm.loss import accuracy, count_targets, linear_cross_entropy, linear_nll
from ssl_lm.masking import WithWords, word_starts
from ssl_lm.text_model import TextModel, init_weights, text_mean
from ssl_lm.tokenizer import settled


class SelfAttention(nn.Module):
    """softmax(q kᵀ / √d) v of every head, before the output matrix."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query, self.key, self.value = (nn.Linear(config.dim, config.dim) for _ in range(3))

    def split(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values (b, h, n, d) of x (b, n, h·d)."""
        parts = (self.query(x), self.key(x), self.value(x))
        return [rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.split(x)  # b h n d
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
    """Attention and MLP, each normalised after its residual sum."""

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
        # without types, all tokens belong to the first sentence
        kind = self.token_type_embeddings.weight[0] if types is None else self.token_type_embeddings(types)
        x = self.word_embeddings(input_ids) + kind + self.position_embeddings(positions)  # b n d
        return F.dropout(self.LayerNorm(x), self.dropout, self.training)


class Head(nn.Module):
    """States (…, d) to vectors (…, d): times the word embeddings, plus `bias`, they are logits."""

    def __init__(self, config: BERTConfig, vocabulary: int) -> None:
        super().__init__()
        dense, norm = nn.Linear(config.dim, config.dim), nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.transform = nn.ModuleDict({"dense": dense, "LayerNorm": norm})
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.transform["LayerNorm"](F.gelu(self.transform["dense"](hidden)))


class BERT(TextModel):
    """BERT with its masked-language-model head. The names inside are those of transformers."""

    config_class = BERTConfig
    layout = "ssl_lm.convert:LAYOUTS[bert]"
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
        self.apply(partial(init_weights, std=config.init_std))  # norms keep their ones and zeros

    def attach(self, source: Any) -> Any:
        """`source` with this model's tokenizer, and with its words if whole words are masked."""
        source = super().attach(source)
        wanted = self.config.whole_words and source.prepared
        return WithWords(source, word_starts(source.tokenizer)) if wanted else source

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """{"loss"} at the selected tokens of `batch["input_ids"]`; in eval mode {"accuracy"} too.

        `batch["input_ids"]` are (b, t); `batch["labels"]` (b, k) are the true tokens at
        `batch["positions"]` (b, k), or (b, t) if there are no positions; -100 is ignored.
        `batch["documents"]` (b, t), if given, separates packed documents.
        """
        # packed documents do not see each other, and each has positions of its own
        mask = positions = None
        if (documents := batch.get("documents")) is not None:
            mask, positions = same_document(documents, documents), document_positions(documents)
        hidden = self.hidden(batch["input_ids"], mask, positions=positions)  # b t d

        # the head works on selected tokens only: 15 % of the text
        if (selected := batch.get("positions")) is not None:
            hidden = hidden.gather(1, selected[..., None].expand(-1, -1, hidden.shape[-1]))  # b k d
        states, labels = self.head(hidden).flatten(0, 1), batch["labels"].flatten()  # (b k) d, (b k)
        outputs = {"loss": linear_cross_entropy(states, self.word_embeddings, labels, self.head.bias)}
        if not self.training:
            outputs["accuracy"] = accuracy(self._product(states), labels)
        return outputs

    def targets(self, batch: dict[str, Any]) -> int:
        """Selected tokens of a batch, over which its loss is a mean."""
        return count_targets(batch["labels"])

    def hidden(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        *,
        types: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """States (b, t, d) of tokens (b, t) after the last block.

        `mask` broadcasts to (b, heads, t, t) and is true where a token may look.

        Raises InputError if a row is longer than the context.
        """
        t = input_ids.shape[1]
        if t > self.config.context:  # there are no more positions
            raise InputError(f"{t} tokens, the model reads {self.config.context}: cut the text")
        if positions is None:
            positions = torch.arange(t, device=input_ids.device)[None]
        x = self.bert["embeddings"](input_ids, positions, types)  # b t d
        for block in self.bert["encoder"]["layer"]:
            x = block(x, mask)
        return x

    @property
    def word_embeddings(self) -> Tensor:
        """(v, d), which is the output matrix too."""
        return self.bert["embeddings"].word_embeddings.weight

    @property
    def head(self) -> Head:
        return self.cls["predictions"]

    def _product(self, states: Tensor) -> Tensor:
        """Logits (…, v) of the head's states (…, d)."""
        return F.linear(states, self.word_embeddings, self.head.bias)

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(b, t, v) for tokens (b, t); `attention_mask` (b, t) is 1 at text, as in `encode`."""
        mask = self.text_mask(input_ids, attention_mask)[:, None, None, :]  # b 1 1 t
        return self._product(self.head(self.hidden(input_ids, mask, types=token_type_ids)))

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features (b, d): the mean of the last states over the text.

        Without `attention_mask` (b, t), the text is what is not padding.
        """
        text = self.text_mask(input_ids, attention_mask)
        return text_mean(self.hidden(input_ids, text[:, None, None, :]), text)

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """(depth, b, heads, t, t): how much every token looks at every other, in every block."""
        mask, t = self.text_mask(input_ids)[:, None, None, :], input_ids.shape[1]
        x, maps = self.bert["embeddings"](input_ids, torch.arange(t, device=input_ids.device)[None], None), []
        for block in self.bert["encoder"]["layer"]:
            q, k, _ = block.attention["self"].split(x)  # b h t d
            maps.append(attention_weights(q, k, mask))  # b h t t
            x = block(x, mask)
        return torch.stack(maps)

    @torch.inference_mode()
    def fill(self, input_ids: Tensor, top_k: int = 5) -> tuple[Tensor, Tensor]:
        """(probabilities, tokens), each (m, k), for the m masks in tokens (b, t), in reading order.

        Raises InputError if there is no mask.
        """
        masked = input_ids == self.config.mask_token_id  # b t
        if not masked.any():
            raise InputError("there is no mask to fill: write [MASK] where a word is missing")
        values, tokens = self.logits(input_ids)[masked].float().softmax(-1).topk(top_k)  # m k
        return values, tokens

    @torch.inference_mode()
    def pseudo_nll(self, input_ids: Tensor, batch_size: int = 64) -> Tensor:
        """−log p(token | all others) of every ordinary token of one text (t,), each masked in turn.

        This is arXiv 1910.14659; exp of the mean is the pseudo-perplexity. Raises InputError for a
        model without a mask token.
        """
        mask = self.config.mask_token_id
        if mask is None:
            raise InputError("the model's tokenizer has no mask token")
        special = torch.tensor(self.config.special_ids, device=input_ids.device)
        places = (~torch.isin(input_ids, special)).nonzero()[:, 0]  # p
        parts = [input_ids.new_zeros(0, dtype=torch.float32)]
        # each row of a batch is the text with another of its tokens masked
        for chunk in places.split(batch_size):
            rows = torch.arange(len(chunk), device=chunk.device)
            inputs = input_ids.repeat(len(chunk), 1)  # r t
            inputs[rows, chunk] = mask
            hidden = self.hidden(inputs, self.text_mask(inputs)[:, None, None, :])[rows, chunk]  # r d
            parts.append(linear_nll(self.head(hidden), self.word_embeddings, input_ids[chunk], self.head.bias))
        return torch.cat(parts)
