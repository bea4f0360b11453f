"""Figures on held-out text: perplexity against a loop, prepared and raw text."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tiny_text import RUN, VOCABULARY, open_windows, tiny_tokenizer, write_text

from ssl_core.errors import DataError
from ssl_core.method import load
from ssl_lm.config import RECIPES
from ssl_lm.measure import at_most, measure, measure_masked, parsing_share, perplexity


class TestPerplexity:
    def test_it_is_that_of_every_token_given_half_a_context_or_more(self, gpt):
        documents = [(np.random.default_rng(0).integers(4, 400, n), n) for n in (5, 24, 25, 90)]
        total, count, context = 0.0, 0, RUN.context
        for ids, _ in documents:
            stream = torch.tensor([3, *ids.tolist()])
            for i in range(1, len(stream)):
                start = 0 if i <= context else (math.ceil((i - context) / (context // 2))) * (context // 2)
                with torch.no_grad():
                    logits = gpt.logits(stream[None, start:i])[0, -1]
                total += float(logits.logsumexp(0) - logits[stream[i]])
                count += 1
        figures = perplexity(gpt, documents)
        assert figures["tokens"] == count == 144 and figures["bytes"] == 144
        assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
        assert figures["bits_per_byte"] == pytest.approx(total / math.log(2) / 144, rel=1e-4)

    def test_no_text_is_an_error(self, gpt):
        with pytest.raises(DataError, match="no text to measure on"):
            perplexity(gpt, [])

    def test_whole_documents_are_taken_until_there_are_enough(self):
        documents = [(np.zeros(n), n) for n in (5, 5, 5)]
        assert [len(list(at_most(iter(documents), limit))) for limit in (1, 5, 6, 99)] == [1, 1, 2, 3]


def test_every_line_is_parsed_by_itself():
    assert parsing_share(["x = 1\n\n    return y\nif a:\nfor in\n"]) == 3 / 4
    assert parsing_share([""]) == 0


def test_measure_of_prepared_and_of_raw_text(run, gpt, tmp_path):
    source = gpt.attach(open_windows(run.parent / "data", config=RUN, split="test"))
    figures = measure(gpt, source)
    assert figures["baselines"].keys() == {"unigram", "3-gram", "xz"} and "lines_that_parse" not in figures
    assert all(0 < value < 10 for value in figures["baselines"].values())
    assert f"GPT {figures['bits_per_byte']:.3f}" in figures["summary"][1]
    json.dumps(figures)
    (tmp_path / "a.txt").write_text(write_text(9))
    raw = measure(gpt, gpt.attach(open_windows(tmp_path / "a.txt", config=RUN)))
    assert "baselines" not in raw and raw["bytes"] == len(write_text(9))


@pytest.mark.parametrize("name", ["bert", "whole words", "t5"])
def test_measure_of_the_other_models(name, untrained, tmp_path):
    method = untrained[name]
    measure = load((RECIPES["t5"] if name == "t5" else RECIPES["bert"]).measure)
    source = method.attach(open_windows(None, config=method.config, split="test"))
    figures = measure(method, source)
    assert math.log(VOCABULARY) - 1 < figures["loss"] and 0 < figures["unigram_entropy"] < 5
    assert figures["summary"][0].startswith("loss")
    (tmp_path / "a.txt").write_text(write_text(9))
    raw = method.attach(open_windows(tmp_path / "a.txt", config=method.config))
    if name == "t5":
        with pytest.raises(DataError, match="run `ssl-lm prepare`"):
            measure(method, raw)
    else:
        assert measure(method, raw).keys() == {"pseudo_perplexity", "summary"}


def test_pseudo_perplexity_is_that_of_framed_windows(untrained, tmp_path):
    method = untrained["bert"]
    (tmp_path / "a.txt").write_text(write_text(9))
    raw = method.attach(open_windows(tmp_path / "a.txt", config=method.config))
    ids, nats = tiny_tokenizer().encode(write_text(9)).ids, []
    for start in range(0, len(ids), 22):
        text = torch.tensor([[2, *ids[start : start + 22], 3]])
        for place in range(1, text.shape[1] - 1):
            hidden = text.clone()
            hidden[0, place] = 4
            with torch.no_grad():
                nats.append(-float(method.logits(hidden)[0, place].log_softmax(0)[text[0, place]]))
    expected = math.exp(sum(nats) / len(nats))
    assert len(nats) > 100 and measure_masked(method, raw)["pseudo_perplexity"] == pytest.approx(expected, rel=1e-5)
