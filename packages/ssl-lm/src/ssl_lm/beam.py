"""Decoding: the most likely token at every step, or beam search.

Beam search looks for the sequences of highest mean log-probability. At every step each running
hypothesis is extended by every token, and the best 2k of all extensions are looked at: those that
end compete for the k finished places by Σ log p / lengthᵅ  (α = `length_penalty`; GNMT, arXiv
1609.08144, without its constant), the best k of the others go on. A text is done when its best
running hypothesis, if it ended now, would not beat its worst finished one. This is the rule of
transformers' `generate` (early_stopping=False), ties apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]
"""step(tokens (r,), rows (r,)) -> logits (r, v) extends r hypotheses by `tokens`.

`rows` says which hypothesis of the step before each of them continues."""

IMPOSSIBLE = -1e9
"""A score that nothing reaches, and that float32 still adds to."""


def greedy(step: Step, start: Tensor, *, length: int, eos: int, pad: int) -> Tensor:
    """The most likely token at every step after `start` (b,): (b, n ≤ length).

    After its first `eos` a row holds `pad`.
    """
    tokens, rows = start, torch.arange(len(start), device=start.device)
    over, said = torch.zeros_like(start, dtype=torch.bool), []
    for _ in range(length):
        tokens = step(tokens, rows).argmax(-1)
        said.append(tokens)
        over |= tokens == eos
        if over.all():
            break
    return trimmed(torch.stack(said, 1), eos, pad)


def beam_search(
    step: Step, start: Tensor, *, beams: int, length: int, eos: int, pad: int, length_penalty: float = 1.0
) -> Tensor:
    """The best sequence after each `start` (b,): (b, n ≤ length).

    It includes `eos`; shorter sequences are filled up with `pad`.
    """
    batch, device = len(start), start.device
    running = torch.full((batch, beams, length), pad, device=device)
    scores = torch.full((batch, beams), IMPOSSIBLE, device=device)
    scores[:, 0] = 0  # at first all hypotheses are the same: only one counts
    finished, finished_scores = running.clone(), torch.full_like(scores, IMPOSSIBLE)
    is_finished = torch.zeros_like(scores, dtype=torch.bool)
    is_open = torch.ones(batch, 1, dtype=torch.bool, device=device)
    offset = beams * torch.arange(batch, device=device)[:, None]
    tokens, rows = start.repeat_interleave(beams), torch.arange(batch * beams, device=device)
    for n in range(length):
        # the best 2k extensions of each text
        log_p = rearrange(step(tokens, rows).float().log_softmax(-1), "(b k) v -> b k v", k=beams)
        vocab_size = log_p.shape[-1]
        best, where = (log_p + scores[..., None]).flatten(1).topk(2 * beams)  # b 2k
        parent, token = where // vocab_size, where % vocab_size
        extended = _take(running, parent)  # b 2k length
        extended[:, :, n] = token
        ends = token == eos if n + 1 < length else torch.ones_like(token, dtype=torch.bool)

        # those that end, and are among the best k, compete with the finished ones
        competing = ends.clone() & is_open
        competing[:, beams:] = False
        final = torch.where(competing, best / (n + 1) ** length_penalty, IMPOSSIBLE)
        finished_scores, chosen = torch.cat([finished_scores, final], 1).topk(beams)  # b k
        finished = _take(torch.cat([finished, extended], 1), chosen)
        is_finished = _take(torch.cat([is_finished, competing], 1), chosen)

        # the best k of the others go on
        scores, chosen = torch.where(ends, best + IMPOSSIBLE, best).topk(beams)
        running = _take(extended, chosen)
        tokens, rows = running[:, :, n].flatten(), (_take(parent, chosen) + offset).flatten()

        # a text is done when no running hypothesis can beat its worst finished one
        reachable = scores[:, :1] / (n + 1) ** length_penalty
        worst = torch.where(is_finished.all(1), finished_scores.amin(1), IMPOSSIBLE)[:, None]
        is_open &= reachable > worst
        if not is_open.any():
            break
    return trimmed(finished[:, 0], eos, pad)


def trimmed(tokens: Tensor, eos: int, pad: int) -> Tensor:
    """Rows (b, n) of tokens with `pad` after their first `eos`, cut to the longest."""
    ended = (tokens == eos).int()
    kept = ended.cumsum(1) - ended == 0
    return tokens.masked_fill(~kept, pad)[:, : int(kept.sum(1).max())]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x (b, m, …) at `index` (b, k)."""
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))
