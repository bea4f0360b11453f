"""T5's corruption of text by removing spans (arXiv 1910.10683, section 3.1.4).

    text       Thank you for inviting me to your party last week.
    input      Thank you <X> me to your party <Y> week.
    target     <X> for inviting <Y> last <Z>

A mask that begins with a removed token gives a target whose first sentinel says so, and can be
inverted. The masks that `noise_spans` draws begin with a kept token and give the result of the
authors' code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.errors import InputError
from ssl_lm.config import removed, span_count


def noise_spans(
    rows: int,
    length: int,
    *,
    density: float = 0.15,
    mean_span: float = 3.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Bool (rows, length): which tokens are removed.

    As `random_spans_noise_mask` of the authors' code: every row loses the same number of tokens in
    the same number of spans: n = round(density · length) tokens, at least one and not all, in
    round(n / mean_span) spans. The lengths of removed and of kept spans are two independent random
    partitions; they alternate, a kept span first. Raises InputError for fewer than two tokens.
    """
    if length < 2:
        raise InputError(f"{length} tokens: of at least two one can be removed")
    noise = removed(length, density)
    spans = span_count(length, density, mean_span)
    kept = _partition(rows, length - noise, spans, generator, device)  # b s
    gone = _partition(rows, noise, spans, generator, device)  # b s
    # a token is removed if the first span that ends behind it has an odd number
    ends = torch.stack([kept, gone], 2).flatten(1).cumsum(1)  # b 2s
    places = torch.arange(length, device=device).expand(rows, length).contiguous()
    return torch.searchsorted(ends, places, right=True) % 2 == 1


def _partition(rows: int, items: int, parts: int, generator: torch.Generator | None, device: Any) -> Tensor:
    """Lengths (rows, parts) ≥ 1 that sum to `items`, cut at uniformly chosen places."""
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
    """(inputs, targets) of tokens (b, t).

    A sentinel replaces each removed span, and the target says what each stands for.     Sentinels
    count down from `first_sentinel` (<extra_id_0>; 32099 in T5's vocabulary). If kept tokens follow
    the last removed span, a closing sentinel ends the target, as in the paper's figure 2. Both end
    with `eos_token_id`; rows of different lengths are filled up with `pad_token_id`. Raises
    InputError if a row needs more sentinels than there are, or already holds one.
    """
    order = _spans(noise_mask)[1]  # b t
    used = order[:, -1] + 1 + ~noise_mask[:, -1]  # b; one more if the target is closed
    if used.max() > sentinels:
        raise InputError(
            f"{int(used.max())} sentinels for the spans of a row, the vocabulary has {sentinels}: shorter texts, a lower "
            "density or longer spans"
        )
    if ((input_ids > first_sentinel - sentinels) & (input_ids <= first_sentinel)).any():
        raise InputError("the text holds sentinels already: another tokenizer made it, or it was corrupted before")
    sentinel = first_sentinel - order
    end = input_ids.new_full((len(input_ids), 1), eos_token_id)
    return _split(input_ids, noise_mask, sentinel, sentinel[:, -1:] - 1, end, pad_token_id)


def corrupt_documents(documents: Tensor, noise_mask: Tensor) -> tuple[Tensor, Tensor]:
    """`corrupt_spans` of document numbers (b, t): the documents of its inputs and targets.

    A sentinel belongs to the document of its span's first token, the end to the last document;
    padding is -1.
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
    """Both sides of a corruption; `sentinel` (b, t) stands for the span that begins there."""
    starts, _ = _spans(noise)
    always = noise.new_ones(len(noise), 1)
    # inputs: kept tokens, and a sentinel in place of the first token of each removed span
    inputs = torch.cat([torch.where(starts, sentinel, values), end], 1)  # b t+1
    seen = torch.cat([~noise | starts, always], 1)
    # targets: removed tokens, each span behind its sentinel, so every token has two places
    targets = torch.cat([torch.stack([sentinel, values], 2).flatten(1), closing, end], 1)  # b 2t+2
    said = torch.cat([torch.stack([starts, noise], 2).flatten(1), ~noise[:, -1:], always], 1)
    return _compact(inputs, seen, pad), _compact(targets, said, pad)


def _compact(values: Tensor, keep: Tensor, pad: int) -> Tensor:
    """The kept values of every row (b, n), filled up with `pad` to the longest row."""
    place = keep.cumsum(1) - 1
    row = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
    out = values.new_full((len(values), int(keep.sum(1).max())), pad)
    out[row[keep], place[keep]] = values[keep]
    return out
