"""Short runs beat the best constant guess on held-out text; knowing the sentinels does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny_text import RUN, VOCABULARY, bert_config, open_windows, t5_config, write_prepared

from ssl_core.method import load
from ssl_lm import GPT
from ssl_lm.config import RECIPES
from ssl_lm.corpus import open_text
from ssl_lm.loss import IGNORED
from ssl_lm.measure import baselines, measure_spans, objective, perplexity
from ssl_lm.t5 import T5
from ssl_lm.views import spans
from ssl_train.options import RunOptions
from ssl_train.run import train

SIZES: Any = {"dim": 64, "heads": 4, "dropout": 0.0}
HIDDEN: Any = {"init_std": 0.12, "mask_rate": 0.3}
BERT_CONFIG = bert_config(**SIZES, **HIDDEN, context=24, depth=1, epochs=16, warmup_epochs=1, base_lr=0.02)
SPANS: Any = {"decoder_depth": 1, "head_dim": 16, "hidden": 128}
T5_CONFIG = t5_config(**SIZES, **SPANS, context=24, depth=1, epochs=8, warmup_epochs=1, base_lr=0.08)
SCHEDULE = {"batch_size": 32, "precision": "fp32"}


@pytest.mark.parametrize(
    ("recipe", "config", "margin"),
    [(RECIPES["bert"], BERT_CONFIG, 0.4), (RECIPES["t5"], T5_CONFIG, 0.5)],
    ids=["bert", "t5"],
)
def test_a_short_run_leaves_the_plateau_of_the_token_frequencies(recipe, config, margin, tmp_path):
    config = dataclasses.replace(config, **SCHEDULE)
    data = write_prepared(tmp_path / "data", config.window, config.stride, windows=512, held_out=64)
    fresh = load(recipe.method)(config).eval()
    method = train(recipe, config, data=data, out=tmp_path / "run", options=RunOptions(device="cpu", workers=0))
    held_out = open_text(data, config=config, split="test")
    before, after = (load(recipe.measure)(m, held_out) for m in (fresh, method))
    assert before["loss"] > after["unigram_entropy"] + margin
    assert has_learned(after, margin)


def has_learned(figures, margin):
    return (
        figures["loss"] < figures["unigram_entropy"] - margin
        and figures["accuracy"] > figures["most_frequent_accuracy"] + 0.1
    )


class Structure(T5):
    """Always right where a sentinel or the end is; elsewhere it knows how frequent `tokens` are."""

    def __init__(self, config, tokens):
        super().__init__(config)
        self.known = torch.arange(VOCABULARY) > config.first_sentinel - config.sentinels
        self.known[config.eos_token_id] = True
        counts = (torch.bincount(tokens, minlength=VOCABULARY) + 1.0).masked_fill(self.known, 0)
        self.p = counts / counts.sum()

    def forward(self, batch, progress):
        labels = batch["labels"][batch["labels"] != IGNORED]
        known = self.known[labels]
        nats = torch.where(known, 0.0, -self.p[labels].log())
        return {"loss": nats.mean(), "accuracy": (known | (labels == self.p.argmax())).float().mean()}


def test_a_model_that_only_knows_where_sentinels_stand_has_learned_nothing(tmp_path):
    data = write_prepared(tmp_path / "data", T5_CONFIG.window, T5_CONFIG.stride, windows=512, held_out=64)
    train_text, held_out = (open_text(data, config=T5_CONFIG, split=split) for split in ("train", "test"))
    method = Structure(T5_CONFIG, torch.from_numpy(train_text.shards.read(0, len(train_text.shards)))).eval()
    assert has_learned(objective(method, spans(T5_CONFIG), held_out), 0.5), "were every target counted"
    figures = measure_spans(method, held_out)
    assert not has_learned(figures, 0)
    assert figures["loss"] >= figures["unigram_entropy"]
    assert figures["accuracy"] == pytest.approx(figures["most_frequent_accuracy"])


def test_a_short_run_learns_more_than_how_frequent_tokens_are(run, gpt):
    source = gpt.attach(open_windows(run.parent / "data", config=RUN, split="test"))
    documents = list(source.texts())
    trained = perplexity(gpt, documents)["bits_per_byte"]
    torch.manual_seed(0)
    fresh = perplexity(GPT(RUN).eval(), documents)["bits_per_byte"]
    assert trained < 0.75 * baselines(source, documents)["unigram"] < fresh
