"""From logits to the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_core.config import check


def check_sampling(temperature: float, *, top_k: int | None = None, top_p: float | None = None) -> None:
    """Raises ConfigError for settings that `choose` cannot use."""
    check(0 <= temperature < float("inf"), "temperature", temperature, "must be 0 (the most likely token) or more")
    check(top_k is None or top_k >= 1, "top_k", top_k, "must be at least 1")
    check(top_p is None or 0 < top_p <= 1, "top_p", top_p, "must lie in (0, 1]")


def choose(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token (b,) for each row of logits (b, v): the most likely at temperature 0, else drawn.

    `top_k` keeps the k most likely tokens, `top_p` the smallest set of tokens whose probabilities
    sum to p (nucleus sampling, arXiv 1904.09751); with both, the nucleus is taken from the k.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature  # b v
    tokens = None  # the token of each score, once they are sorted
    # topk keeps exactly k tokens, also where several have the same score
    if top_k is not None:
        scores, tokens = scores.topk(min(top_k, scores.shape[-1]))  # b k
    elif top_p is not None:
        scores, tokens = scores.sort(descending=True)
    # a token belongs to the nucleus if the more likely ones do not reach p without it
    if top_p is not None:
        p = scores.softmax(-1)
        scores = scores.masked_fill(p.cumsum(-1) - p >= top_p, float("-inf"))
    drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)  # b 1
    return (drawn if tokens is None else tokens.gather(-1, drawn)).squeeze(-1)
