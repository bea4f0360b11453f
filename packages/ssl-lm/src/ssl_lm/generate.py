"""`ssl-lm generate`: texts continued as a batch, or one text shown token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ssl_core.device import pick_device
from ssl_core.method import Recipe, load

if TYPE_CHECKING:
    from ssl_lm.gpt import GPT
    from ssl_lm.verbs import Generate

UNFINISHED = "�"
"""What a decoder shows for a character whose last bytes are still to come."""


def run(recipe: Recipe, arguments: Generate) -> dict[str, Any]:
    """The verb."""
    method = load(recipe.method).from_pretrained(arguments.weights, device=pick_device(arguments.device))
    settings: dict[str, Any] = {"tokens": arguments.tokens, "stop": arguments.stop, "seed": arguments.seed}
    settings |= {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}

    # one text is shown as it comes
    if len(arguments.prompts) == 1:
        print(arguments.prompts[0], end="", flush=True)
        texts = complete(method, arguments.prompts, on_text=lambda _, text: print(text, end="", flush=True), **settings)
        print()
        return {"texts": texts}
    texts = complete(method, arguments.prompts, **settings)
    for number, (prompt, text) in enumerate(zip(arguments.prompts, texts, strict=True), 1):
        print(f"--- {number}\n{prompt}{text}")
    return {"texts": texts}


def complete(
    method: GPT,
    prompts: Sequence[str],
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    **sampling: Any,
) -> list[str]:
    """What the model writes after each prompt: up to `tokens` tokens, as one batch.

    The result does not repeat the prompt. An empty prompt starts a new text. A text ends at the eos
    token or before a string of `stop`. `on_text(row, piece)` is called as text comes.
    `temperature`, `top_k`, `top_p` and `seed` are those of `GPT.stream`. Texts longer than the
    context go on with its newer half; in a batch, all rows drop their older half when the longest
    fills the context. Raises InputError if the model has no tokenizer, and ConfigError for a prompt
    longer than the context.
    """
    tokenizer, eos = method.needed_tokenizer(), method.config.eos_token_id
    rows = [tokenizer.encode(prompt, add_special_tokens=False).ids or [0 if eos is None else eos] for prompt in prompts]
    # prompts are padded on the left, so that new tokens follow all of them
    width, device = max(len(row) for row in rows), next(method.parameters()).device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)  # b t
    there = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    mask = None if there.all() else there
    steps = method.stream(ids, tokens, temperature, attention_mask=mask, overflow="slide", **sampling)
    writers = [Writer(tokenizer, stop, eos) for _ in rows]

    def show(row: int, piece: str) -> None:
        if piece and on_text is not None:
            on_text(row, piece)

    for step in steps:
        for row, (writer, token) in enumerate(zip(writers, step.tolist(), strict=True)):
            if not writer.done:
                writer.add(token)
                show(row, writer.news(last=writer.done))
        if all(writer.done for writer in writers):
            break
    for row, writer in enumerate(writers):
        show(row, writer.news(last=True))
    return [writer.text for writer in writers]


class Writer:
    """The text of one row so far: whole characters only, and nothing from a stop string on."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], eos: int | None = None) -> None:
        self.tokenizer, self.eos, self.stop = tokenizer, eos, [word for word in stop if word]
        self.ids: list[int] = []
        self.text, self.shown, self.done = "", 0, False

    def add(self, token: int) -> None:
        """Append a token; `done` is true afterwards if it is `eos` or completes a stop string."""
        if token == self.eos:
            self.done = True
            return
        # a character may take several tokens, so all of them are decoded again
        self.ids.append(token)
        self.text = self.tokenizer.decode(self.ids)
        places = [place for word in self.stop if (place := self.text.find(word)) >= 0]
        if places:
            self.text, self.done = self.text[: min(places)], True

    def news(self, *, last: bool = False) -> str:
        """The text since the last call. Unless `last`, what may begin a stop string waits."""
        end = len(self.text)
        if not last and not self.done:
            while end and self.text[end - 1] == UNFINISHED:
                end -= 1
            # the longest end of the text that is the beginning of a stop string
            text = self.text[:end]
            end -= max((n for word in self.stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)
        new, self.shown = self.text[self.shown : end], max(self.shown, end)
        return new
