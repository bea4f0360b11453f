"""Attention of the three models: the product, its masks, and the cache of generation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(queries: int, keys: int, device: torch.device | str = "cpu") -> Tensor:
    """Boolean (queries, keys), true where a query may look; the queries are the last keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def same_document(queries: Tensor, keys: Tensor) -> Tensor:
    """Boolean (b, 1, q, k): true where queries (b, q) and keys (b, k) share a document."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def document_positions(documents: Tensor) -> Tensor:
    """Positions (b, t) that start again at 0 with every document of a packed row (b, t)."""
    steps = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return steps - (steps * begins).cummax(1).values


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + mask) v for q (b, h, n, d), k and v (b, h, m, d): (b, h, n, d).

    `scale` is 1/√d by default. `mask` broadcasts to (b, h, n, m): either boolean, true where a
    query may look, or numbers that are added. `causal` is the mask of queries that are the last n
    of the m keys.
    """
    n, m = q.shape[-2], k.shape[-2]
    # on a CPU in bf16 the plain product is faster than the fused kernel (docs/benchmarks.md)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        if causal and n > 1:
            mask = causal_mask(n, m, q.device)
        weights = attention_weights(q, k, mask, scale=scale)  # b h n m
        return F.dropout(weights, dropout, training=dropout > 0) @ v
    # the fused kernel aligns its causal mask with the first keys, so n < m needs a mask of ours;
    # a single query is the last token and may look everywhere
    if causal and 1 < n < m:
        mask, causal = causal_mask(n, m, q.device), False
    causal = bool(causal and n > 1)  # a traced n makes a symbol of it
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """The softmax matrix of `attend`, (b, h, n, m)."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=q.dtype)


class Cache:
    """Keys and values of the tokens so far, for every block.

    `shape` is (depth, batch, heads, room, head_dim), `room` the most tokens that fit; dtype and
    device are those of `like`. `length` counts the tokens that are there: the model raises it once
    all blocks have written.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], like: Tensor) -> None:
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.room, self.length = shape[3], 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (b, h, n, d) to block `layer`; return all of it, (b, h, length + n, d).

        Raises ValueError if they do not fit.
        """
        end = self.length + k.shape[-2]
        if end > self.room:
            raise ValueError(f"the cache has room for {self.room} tokens, not for {end}")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
