"""BERT keeps the promises that every method makes."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import torch
from tiny_text import TextConformance, bert_config, open_windows, tiny_tokenizer

from ssl_lm.bert import BERT
from ssl_lm.config import RECIPES
from ssl_lm.masking import word_starts
from ssl_lm.views import masked


class TestBERT(TextConformance):
    recipe = RECIPES["bert"]
    config = bert_config(context=14, hidden=24, dropout=0.1, clip_grad=None)


WHOLE_WORDS = dataclasses.replace(TestBERT.config, whole_words=True, context=62, mask_rate=0.3)


def test_whole_words_are_masked_if_the_config_says_so():
    config = WHOLE_WORDS
    source = BERT(config).attach(open_windows(None, config=config))
    view, starts = masked(config), word_starts(tiny_tokenizer())
    for index in range(20):
        sample = view(source.load(index), np.random.default_rng(index))
        tokens, positions = source.load(index)["input_ids"], sample["positions"][sample["labels"] >= 0] - 1
        words = starts[tokens]
        words[1:] |= tokens[:-1] == config.eos_token_id
        words = words.cumsum(0)
        chosen = {int(words[p]) for p in positions}
        ordinary = [i for i, token in enumerate(tokens.tolist()) if token not in config.special_ids]
        assert sorted(positions.tolist()) == [i for i in ordinary if int(words[i]) in chosen]
        assert 0 < len(positions) <= config.masked == 18


def test_a_document_begins_with_a_word_also_in_another_process():
    source = BERT(WHOLE_WORDS).attach(open_windows(None, config=WHOLE_WORDS))
    copy, borders = pickle.loads(pickle.dumps(source)), 0
    for index in range(len(source)):
        sample = source.load(index)
        assert all(torch.equal(sample[key], value) for key, value in copy.load(index).items())
        changes = sample["documents"].diff().nonzero()[:, 0]
        assert all(sample["words"][i] < sample["words"][i + 1] for i in changes)
        borders += len(changes)
    assert borders > 5 and copy.fingerprint() == source.fingerprint() and copy.prepared
