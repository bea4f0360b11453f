"""BERT's corruption of text (arXiv 1810.04805, section 3.1), of single tokens or of whole words.

    selected   15 % of a sequence's ordinary tokens, drawn anew every time it is read
    input      of those 80 % [MASK], 10 % another ordinary token, 10 % unchanged

A random replacement is never a special token; the authors' code draws from the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.errors import InputError
from ssl_lm.loss import IGNORED

NEVER = 2.0
"""Above every uniform draw."""


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
    """BERT's corruption of (b, t) tokens: (inputs, labels), both (b, t).

    Labels are -100 where nothing is to be predicted. Selects the share `rate` of every row's tokens
    that are not in `special_ids`, and at least one: the product is rounded up or down at random, so
    that its mean is exact. `count` fixes the number instead. With `words` (b, t), the number of
    each token's word (-1: none), whole words are selected in random order, and a word that would
    exceed the number is passed over (whole-word masking of the authors' later code). Of the
    selected tokens, each on its own, 80 % become `mask_token_id`, 10 % a random ordinary token, 10
    % stay. Raises InputError for tokens outside the vocabulary and for a row that holds special
    tokens only.
    """
    b, t = input_ids.shape
    device = input_ids.device
    if input_ids.min() < 0 or input_ids.max() >= vocab_size:
        found = f"tokens {int(input_ids.min())} … {int(input_ids.max())}"
        raise InputError(f"{found} of a vocabulary of {vocab_size}: another tokenizer made them")

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    ordinary = torch.ones(vocab_size, dtype=torch.bool, device=device)  # v
    ordinary[torch.as_tensor([*special_ids, mask_token_id], device=device)] = False
    maskable = ordinary[input_ids]  # b t
    available = maskable.sum(1)  # b
    if not available.all():
        raise InputError("a sequence holds special tokens only: there is nothing to mask, leave it out")

    # how many of each row, at least one and at most what there is
    wanted = torch.full((b,), count, device=device) if count else (rate * available + draw(b)).floor().long()
    wanted = torch.minimum(wanted.clamp(min=1), available)
    # which ones: those with the smallest draws
    if words is None:
        rank = draw(b, t).masked_fill(~maskable, NEVER).argsort(1).argsort(1)
        selected = rank < wanted[:, None]  # b t
    else:
        selected = select_words(words.masked_fill(~maskable, -1), wanted, draw(b, t))
    # what becomes of each
    roll, choices = draw(b, t), ordinary.nonzero()[:, 0]
    other = choices[torch.randint(len(choices), (b, t), generator=generator, device=device)]
    inputs = torch.where(selected & (roll < 0.8), mask_token_id, input_ids)
    inputs = torch.where(selected & (roll >= 0.8) & (roll < 0.9), other, inputs)
    return inputs, input_ids.masked_fill(~selected, IGNORED)


def select_words(words: Tensor, wanted: Tensor, noise: Tensor) -> Tensor:
    """Boolean (b, t): whole words in the order of `noise`, as long as they fit into `wanted` (b,).

    `words` (b, t) numbers the word of each token, -1 for none. `noise` (b, t) holds the draw of
    word w in column w. If every word of a row is longer than `wanted`, its shortest is taken, so
    that no row is without a target.
    """
    b, t = words.shape
    column = words + 1  # 0 collects what belongs to no word
    lengths = words.new_zeros(b, t + 1).scatter_add_(1, column, torch.ones_like(column))  # b w
    lengths[:, 0] = 0
    shortest = lengths.masked_fill(lengths == 0, t + 1).amin(1)
    room = torch.maximum(wanted, shortest)[:, None]  # b 1
    order = F.pad(noise, (1, 0)).argsort(1)  # b w
    # lengths in random order; while the words up to some place exceed the room, every row passes
    # over (sets to 0) the first that does not fit, and with it all later ones that are longer than
    # what the words before it leave
    left = lengths.gather(1, order)
    while True:
        filled = left.cumsum(1)
        over = filled > room
        if not over.any():
            break
        first = over.int().argmax(1, keepdim=True)
        free = room - (filled - left).gather(1, first)
        passed = (torch.arange(t + 1, device=words.device) >= first) & (left > free) & over.any(1, keepdim=True)
        left = left.masked_fill(passed, 0)
    # back to the order of the words, then to their tokens
    chosen = torch.zeros_like(left, dtype=torch.bool).scatter_(1, order, left > 0)  # b w
    return chosen.gather(1, column) & (words >= 0)


def word_starts(tokenizer: Any) -> Tensor:
    """Bool (v,): whether each token of the vocabulary begins a word.

    WordPiece marks tokens that continue a word ("##"), byte-level BPE and SentencePiece those that
    begin one ("Ġ", "▁").
    """
    words = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1])
    pieces = any(word.startswith("##") for word, _ in words)
    return torch.tensor([not word.startswith("##") if pieces else word[:1] in "ĠĊ▁" for word, _ in words])


class WithWords:
    """Prepared text whose samples have "words" too: the number of each token's word.

    A document begins with a word.
    """

    def __init__(self, source: Any, starts: Tensor) -> None:
        self.source, self.starts = source, starts

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> dict[str, Any]:
        sample = self.source.load(index)
        first = sample["documents"].diff(prepend=sample["documents"][:1] - 1) != 0
        return {**sample, "words": (self.starts[sample["input_ids"]] | first).cumsum(0)}

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # pickle asks an empty copy for its methods
            raise AttributeError(name)
        return getattr(self.source, name)
