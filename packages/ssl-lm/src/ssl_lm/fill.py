"""`ssl-lm fill`: the most likely words for every [MASK] of a text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from ssl_core.device import pick_device
from ssl_core.errors import InputError
from ssl_core.method import Recipe, load
from ssl_lm.views import framed
from ssl_train.data.files import printable

if TYPE_CHECKING:
    from ssl_lm.bert import BERT
    from ssl_lm.verbs import Fill

MASK = "[MASK]"


def run(recipe: Recipe, arguments: Fill) -> dict[str, Any]:
    """The verb."""
    method = load(recipe.method).from_pretrained(arguments.weights, device=pick_device(arguments.device))
    filled = []
    for text in arguments.texts:
        print(text)
        masks = fill(method, text, top_k=arguments.top_k)
        filled.append({"text": text, "masks": [[{"word": w, "probability": p} for w, p in mask] for mask in masks]})
        for number, guesses in enumerate(masks, 1):
            if text.count(MASK) > 1:
                print(f"  mask {number}")
            for word, probability in guesses:
                print(f"  {probability:6.1%}  {printable(word) or '(space)'}")
    return {"texts": filled}


def fill(method: BERT, text: str, *, top_k: int = 5) -> list[list[tuple[str, float]]]:
    """For every [MASK] of `text` the `top_k` most likely (word, probability).

    Raises InputError for a text without a mask or longer than the context, and for a model without
    a tokenizer or without a mask token.
    """
    tokenizer, config = method.needed_tokenizer(), method.config
    if config.mask_token_id is None:
        raise InputError("the model's tokenizer has no mask token")
    if MASK not in text:
        raise InputError(f"{text!r} has no {MASK}: write it where a word is missing")
    if not 0 < top_k <= tokenizer.get_vocab_size():
        raise InputError(f"top_k = {top_k}: there are {tokenizer.get_vocab_size()} tokens")
    # where a token includes the space before its word, that space belongs to the mask
    spaced = not any(word.startswith("##") for word in tokenizer.get_vocab())
    ids: list[int] = []
    for number, part in enumerate(re.split(rf"\s*{re.escape(MASK)}" if spaced else re.escape(MASK), text)):
        ids += [config.mask_token_id] if number else []
        ids += tokenizer.encode(part, add_special_tokens=False).ids
    if len(ids) > config.window:
        raise InputError(f"the text has {len(ids)} tokens, the model reads {config.window}: shorten it")
    tokens = framed(torch.tensor(ids), config)[None].to(method.word_embeddings.device)  # 1 t
    probabilities, found = method.fill(tokens, top_k)  # m k
    return [
        [(tokenizer.decode([token]).strip(" "), share) for token, share in zip(row, shares, strict=True)]
        for row, shares in zip(found.tolist(), probabilities.tolist(), strict=True)
    ]
