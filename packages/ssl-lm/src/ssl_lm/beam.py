"""Beam search: the sequences of highest mean log-probability that a few running hypotheses reach.

Per step every hypothesis is extended by every token, and of all extensions the best 2k are looked at: those that end
compete for the k finished ones by  Σ log p / lengthᵅ  (α = `length_penalty`; GNMT, arXiv 1609.08144, without its
constant), the best k of the others go on. A text is done when its best running hypothesis, were it to end now, would
not beat its worst finished one. This is the rule of transformers' `generate` (early_stopping=False), ties apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]

IMPOSSIBLE = -1e9  # a score that nothing reaches, and that float32 still adds to


def beam_search(
    step: Step,
    *,
    batch: int,
    beams: int,
    length: int,
    start: int,
    eos: int,
    pad: int,
    length_penalty: float = 1.0,
    device: torch.device,
) -> Tensor:
    """The best sequence of every text, (b, n ≤ length), its end included, the shorter ones filled up with `pad`.

    `step(tokens (b·k,), rows (b·k,)) -> logits (b·k, v)` extends the hypotheses: `tokens` are their last ones and `rows`
    say which hypothesis of the step before each continues.
    """
    running = torch.full((batch, beams, length), pad, device=device)
    scores = torch.full((batch, beams), IMPOSSIBLE, device=device)
    scores[:, 0] = 0  # at first all hypotheses are the same: one counts
    finished, finished_scores = running.clone(), torch.full_like(scores, IMPOSSIBLE)
    is_finished = torch.zeros_like(scores, dtype=torch.bool)
    is_open = torch.ones(batch, 1, dtype=torch.bool, device=device)
    offset = beams * torch.arange(batch, device=device)[:, None]
    tokens = torch.full((batch * beams,), start, device=device)
    rows = torch.arange(batch * beams, device=device)
    for n in range(length):
        log_p = rearrange(step(tokens, rows).float().log_softmax(-1), "(b k) v -> b k v", k=beams)
        vocab_size = log_p.shape[-1]
        best, where = (log_p + scores[..., None]).flatten(1).topk(2 * beams)  # b 2k
        parent, token = where // vocab_size, where % vocab_size
        extended = _take(running, parent)
        extended[:, :, n] = token
        ends = token == eos if n + 1 < length else torch.ones_like(token, dtype=torch.bool)

        competing = ends.clone() & is_open
        competing[:, beams:] = False
        final = torch.where(competing, best / (n + 1) ** length_penalty, IMPOSSIBLE)
        finished_scores, chosen = torch.cat([finished_scores, final], 1).topk(beams)
        finished = _take(torch.cat([finished, extended], 1), chosen)
        is_finished = _take(torch.cat([is_finished, competing], 1), chosen)

        scores, chosen = torch.where(ends, best + IMPOSSIBLE, best).topk(beams)
        running = _take(extended, chosen)
        tokens, rows = running[:, :, n].flatten(), (_take(parent, chosen) + offset).flatten()

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
