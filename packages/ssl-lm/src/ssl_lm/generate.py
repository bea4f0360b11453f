"""`ssl-lm generate`: texts continued, in a batch, or written to the terminal token by token."""

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
"""What a decoder shows of a character whose last bytes are still to come."""


def run(recipe: Recipe, args: Generate) -> None:
    """The verb."""
    method = load(recipe.method).from_pretrained(args.weights, device=pick_device(args.device))
    alone = len(args.prompts) == 1

    def write(row: int, text: str) -> None:
        print(text, end="", flush=True)

    if alone:
        print(args.prompts[0], end="", flush=True)
    texts = complete(
        method, args.prompts, tokens=args.tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        stop=args.stop, seed=args.seed, on_text=write if alone else None,
    )  # fmt: skip
    if alone:
        print()
        return
    for number, (prompt, text) in enumerate(zip(args.prompts, texts, strict=True), 1):
        print(f"--- {number}\n{prompt}{text}")


class Writer:
    """The text of one row so far: whole characters only, nothing from a stop string on."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, [word for word in stop if word]
        self.ids: list[int] = []
        self.text, self.shown, self.done = "", 0, False

    def add(self, token: int) -> None:
        """Take a token; `done` afterwards where a stop string is complete."""
        self.ids.append(token)
        self.text = self.tokenizer.decode(self.ids)
        places = [place for word in self.stop if (place := self.text.find(word)) >= 0]
        if places:
            self.text, self.done = self.text[: min(places)], True

    def news(self, *, last: bool = False) -> str:
        """What can be shown since the last call: not the beginning of a stop string, unless this is the `last` call."""
        end = len(self.text)
        if not last and not self.done:
            while end and self.text[end - 1] == UNFINISHED:
                end -= 1
            end -= max(
                (n for word in self.stop for n in range(1, len(word)) if self.text[:end].endswith(word[:n])), default=0
            )
        new, self.shown = self.text[self.shown : end], max(self.shown, end)
        return new


def complete(
    method: GPT, prompts: Sequence[str], *, tokens: int = 200, temperature: float = 0.8, top_k: int | None = None,
    top_p: float | None = None, stop: Sequence[str] = (), seed: int | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[str]:  # fmt: skip
    """What the model writes behind each prompt, without the prompt: up to `tokens` tokens, as one batch.

    An empty prompt starts a text. A text ends at the eos token or before a string of `stop`. `on_text(row, piece)` is
    called as text comes. Texts longer than the context go on with its newer half (`GPT.stream`); in a batch it fills up
    for all rows when it does for the longest.
    Raises InputError where the model has no tokenizer, and ConfigError for a prompt longer than the context.
    """
    tokenizer, eos = method.needed_tokenizer(), method.config.eos_token_id
    rows = [tokenizer.encode(prompt, add_special_tokens=False).ids or [0 if eos is None else eos] for prompt in prompts]
    width = max(len(row) for row in rows)
    device = next(method.parameters()).device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    there = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    steps = method.stream(
        ids, tokens, temperature, top_k, top_p, seed=seed, overflow="slide",
        attention_mask=None if bool(there.all()) else there,
    )  # fmt: skip
    writers = [Writer(tokenizer, stop) for _ in rows]
    for step in steps:
        for row, (writer, token) in enumerate(zip(writers, step.tolist(), strict=True)):
            if writer.done:
                continue
            if token == eos:
                writer.done = True
            else:
                writer.add(token)
            if on_text is not None and (piece := writer.news(last=writer.done)):
                on_text(row, piece)
        if all(writer.done for writer in writers):
            break
    for row, writer in enumerate(writers):
        if on_text is not None and (piece := writer.news(last=True)):
            on_text(row, piece)
    return [writer.text for writer in writers]
