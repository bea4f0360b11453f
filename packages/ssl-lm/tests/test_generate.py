"""Texts that GPT continues: in a batch, streamed, up to a stop string."""

from __future__ import annotations

import pytest
from tiny_text import tiny_tokenizer, write_text

from ssl_core.config import ConfigError
from ssl_lm import complete
from ssl_lm.generate import Writer


def test_a_batch_writes_what_each_prompt_writes_alone(gpt):
    prompts = ["alpha = ", "def beta(", "", "total = delta + gamma *"]
    together = complete(gpt, prompts, tokens=12, temperature=0)
    assert together == [complete(gpt, [p], tokens=12, temperature=0)[0] for p in prompts]
    assert any(together)


def test_streamed_pieces_make_the_text(gpt):
    pieces = {0: [], 1: []}
    texts = complete(gpt, ["alpha", "def"], tokens=30, seed=3, on_text=lambda row, piece: pieces[row].append(piece))
    assert ["".join(pieces[row]) for row in (0, 1)] == texts
    assert len(pieces[0]) > 5


def test_a_text_ends_before_its_stop_string(gpt):
    free = complete(gpt, ["alpha"], tokens=60, temperature=0)[0]
    stop = free[10:14]
    pieces = []
    stopped = complete(gpt, ["alpha"], tokens=60, temperature=0, stop=[stop], on_text=lambda _, p: pieces.append(p))
    assert stopped[0] == free[: free.index(stop)] == "".join(pieces)


def test_a_prompt_longer_than_the_context_is_an_error(gpt):
    with pytest.raises(ConfigError, match=r"prompt has \d+ tokens, more than the context of 24"):
        complete(gpt, [write_text(30)])


def test_incomplete_characters_and_possible_stop_strings_are_held_back():
    tokenizer = tiny_tokenizer()
    writer, seen = Writer(tokenizer, ["END!"]), []
    for token in tokenizer.encode("aé雪 EN END!").ids:
        writer.add(token)
        seen.append(writer.news())
    assert "".join(seen) == writer.text == "aé雪 EN " and writer.done
    assert not any("�" in piece for piece in seen)
    writer = Writer(tokenizer, ["END!"])
    for token in tokenizer.encode("x EN").ids:
        writer.add(token)
    assert writer.news() == "x " and writer.news(last=True) == "EN"
