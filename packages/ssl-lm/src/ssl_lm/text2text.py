"""`ssl-lm text2text`: T5's answers to texts, and the forms in which it was taught its tasks."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ssl_core.device import pick_device
from ssl_core.errors import InputError
from ssl_core.method import Recipe, load

if TYPE_CHECKING:
    from ssl_lm.t5 import T5
    from ssl_lm.verbs import Text2Text

TASKS = {
    "translate": "translate English to {language}: {text}",
    "summarize": "summarize: {text}",
    "sentiment": "sst2 sentence: {text}",
    "grammar": "cola sentence: {text}",
    "question": "question: {text} context: {context}",
}
"""What T5 v1.0 was taught beside restoring spans (appendix D of the paper)."""
LANGUAGES = ("French", "German", "Romanian")
PREFIXES = (
    *(f"translate English to {language}" for language in LANGUAGES),
    *(
        "summarize, sst2 sentence, cola sentence, question, mnli premise, mrpc sentence1, qqp question1, qnli question, "
        "rte sentence1, stsb sentence1, wnli sentence1, copa choice1, multirc question, record query, boolq passage, "
        "cb premise, wic pos, wsc"
    ).split(", "),
)
"""The beginnings of texts that ask for one of the paper's tasks."""


def run(recipe: Recipe, arguments: Text2Text) -> dict[str, Any]:
    """The verb."""
    texts, task = list(arguments.texts), arguments.task
    if task is not None:
        texts = [prompt(task, text, language=arguments.language, context=arguments.context) for text in texts]
    method = load(recipe.method).from_pretrained(arguments.weights, device=pick_device(arguments.device))
    beams, length, penalty = arguments.beams, arguments.tokens, arguments.length_penalty
    said = answers(method, texts, num_beams=beams, max_new_tokens=length, length_penalty=penalty)
    for text, answer in zip(texts, said, strict=True):
        if (reason := advice(method, text)) is not None:
            print(f"note: {reason}", file=sys.stderr)
        print(answer if len(texts) == 1 else f"{text}\n  {answer}")
    return {"answers": [{"text": text, "answer": answer} for text, answer in zip(texts, said, strict=True)]}


def prompt(task: str, text: str, *, language: str = "French", context: str | None = None) -> str:
    """`text` in the form of `task`.

    Raises InputError for an unknown task or language, and for a question without its context.
    """
    if task not in TASKS:
        raise InputError(f"no task {task!r}; there are {', '.join(TASKS)}")
    if task == "translate" and language not in LANGUAGES:
        raise InputError(f"T5 was taught to translate English to {', '.join(LANGUAGES)}, not to {language}")
    if (task == "question") != (context is not None):
        raise InputError("a question needs a context that holds its answer, and only a question has one")
    return TASKS[task].format(text=text, language=language, context=context)


def advice(method: T5, text: str) -> str | None:
    """Why this model cannot do what `text` asks (it was taught no task, or not this one), or
    None."""
    # a prefix is some words before a colon at the beginning
    asks = re.match(r"[a-z][\w ]{2,40}(?=:)", text, re.IGNORECASE)
    if "<extra_id_0>" in text or not asks:
        return None
    # v1.1, and models of another vocabulary, were trained on unlabelled text alone
    if method.config.gated or method.config.vocab_size != 32128:
        return (
            "this model restores spans and was taught no task: fine-tune it, or ask for what is missing, "
            "'The <extra_id_0> walks in the park'"
        )
    if not asks[0].startswith(PREFIXES):
        return f"T5 was taught no task {asks[0]!r}: see --task {{{','.join(TASKS)}}}"
    return None


def answers(
    method: T5, texts: Sequence[str], *, num_beams: int = 4, max_new_tokens: int = 64, length_penalty: float = 1.0
) -> list[str]:
    """T5's answers to texts, as one batch. They keep the sentinels and drop the end.

    Raises InputError for an empty text, for a model without a tokenizer, and for a tokenizer
    without an end or padding.
    """
    tokenizer, config = method.needed_tokenizer(), method.config
    if config.eos_token_id is None or config.pad_token_id is None:
        raise InputError("the model's tokenizer has no end or no padding")
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    if not all(rows):
        raise InputError("a text is empty: there is nothing to answer")
    device = method.shared.weight.device
    ids = [torch.tensor([*row, config.eos_token_id], device=device) for row in rows]
    tokens = pad_sequence(ids, batch_first=True, padding_value=config.pad_token_id)
    said = method.generate(tokens, max_new_tokens=max_new_tokens, num_beams=num_beams, length_penalty=length_penalty)
    # sentinels stay: they say which missing span an answer is for
    left_out = {config.eos_token_id, config.pad_token_id}
    kept = [[token for token in row if token not in left_out] for row in said.tolist()]
    return [tokenizer.decode(row, skip_special_tokens=False).strip() for row in kept]
