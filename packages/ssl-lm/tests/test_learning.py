"""A short run of BERT and of T5 says more of held-out text than the best constant guess does."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_text import IDS, VOCABULARY, write_prepared

from ssl_core.config import RunOptions
from ssl_core.method import load
from ssl_core.train.run import train
from ssl_lm.config import BERT_RECIPE, T5_RECIPE, BERTConfig, T5Config
from ssl_lm.corpus import open_text

BERT_CONFIG = BERTConfig(
    vocab_size=VOCABULARY, context=32, dim=64, depth=2, heads=4, init_std=0.12, dropout=0.0,
    unk_token_id=1, cls_token_id=2, sep_token_id=3, mask_token_id=4, first_sentinel=399,
    epochs=32, warmup_epochs=2, base_lr=0.016, **IDS,
)  # fmt: skip
T5_CONFIG = T5Config(
    vocab_size=VOCABULARY, context=32, dim=64, depth=2, decoder_depth=2, heads=4, head_dim=16, hidden=128, dropout=0.0,
    first_sentinel=399, epochs=12, warmup_epochs=1, base_lr=0.04, **IDS,
)  # fmt: skip
SCHEDULE = {"batch_size": 32, "precision": "fp32"}


@pytest.mark.parametrize(
    ("recipe", "config", "margin"), [(BERT_RECIPE, BERT_CONFIG, 0.4), (T5_RECIPE, T5_CONFIG, 0.5)], ids=["bert", "t5"]
)
def test_a_short_run_leaves_the_plateau_of_the_token_frequencies(recipe, config, margin, tmp_path):
    config = dataclasses.replace(config, **SCHEDULE)
    data = write_prepared(tmp_path / "data", config.window, config.stride, windows=512, held_out=64)
    fresh = load(recipe.method)(config).eval()
    method = train(recipe, config, data=data, out=tmp_path / "run", options=RunOptions(device="cpu", workers=0))
    held_out = open_text(data, config=config, split="test")
    before, after = (load(recipe.measure)(m, held_out) for m in (fresh, method))
    assert after["loss"] < after["unigram_entropy"] - margin
    assert before["loss"] > after["unigram_entropy"] + margin
    assert after["accuracy"] > after["most_frequent_accuracy"] + 0.1
