"""Scaled dot-product attention of the three models, and the keys and values that generation keeps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(queries: int, keys: int, device: torch.device | str = "cpu") -> Tensor:
    """Boolean (queries, keys), true where a query may look: the queries are the last ones of the keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *,
    causal: bool = False, dropout: float = 0.0, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """softmax(scale · q kᵀ + mask) v for q (b, h, n, d), k and v (b, h, m, d); scale is 1/√d by default.

    `mask` broadcasts to (b, h, n, m): true where a query may look, or numbers that are added. `causal` is the mask of
    queries that are the last n of m keys. On a CPU in bf16 the plain product is faster than the fused kernel
    (docs/benchmarks.md), elsewhere the fused one.
    """
    n, m = q.shape[-2], k.shape[-2]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        if causal and n > 1:
            mask = causal_mask(n, m, q.device)
        weights = attention_weights(q, k, mask, scale=scale)
        return F.dropout(weights, dropout, training=dropout > 0) @ v
    if causal and 1 < n < m:
        mask, causal = causal_mask(n, m, q.device), False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal and n > 1, scale=scale
    )


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """The softmax matrix of `attend`, (b, h, n, m)."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=q.dtype)


class Cache:
    """Keys and values of every block for up to `room` tokens of a batch, written in place; `length` are there."""

    def __init__(
        self, *, depth: int, batch: int, heads: int, room: int, head_dim: int,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        shape = (depth, batch, heads, room, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.room, self.length = room, 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write block `layer`'s k and v (b, h, n, d) behind the tokens that are there; all of them, (b, h, length + n, d).

        `length` grows when every block has written: the model adds n to it. Raises ValueError where there is no room.
        """
        end = self.length + k.shape[-2]
        if end > self.room:
            raise ValueError(f"the cache has room for {self.room} tokens, not for {end}")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
