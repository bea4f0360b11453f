"""The tokenizer's way into a run of BEiT: given, from published weights, or trained first."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ssl_beit import DVAE, BEiT, BEiTConfig, DVAEConfig, train
from ssl_beit.config import PRESETS
from ssl_core.config import ConfigError
from ssl_train.options import RunOptions

SIZES = {"image_size": (16, 24), "patch_size": 8, "dim": 16, "depth": 2, "heads": 2, "drop_path": 0.0}
TOKENS = {"vocab": 12, "mask_patches": 3, "mask_block": 1}
TOKENIZER = {"tokenizer_hidden": 8, "tokenizer_blocks": 1, "tokenizer_init": 4}
SCHEDULE = {"epochs": 0.5, "warmup_epochs": 0, "batch_size": 8, "precision": "fp32"}
RUN = BEiTConfig(**SIZES, **TOKENS, **TOKENIZER, **SCHEDULE)
QUICK = RunOptions(device="cpu", workers=0)


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def data(tmp_path):
    """Thirty-two small pictures in one file."""
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(32) % 4)
    return tmp_path / "data.npz"


@pytest.fixture
def tokenizer(tmp_path):
    torch.manual_seed(5)
    dvae = DVAE(DVAEConfig(image_size=32, hidden=4, blocks=2, decoder_init=8, vocab=12))
    return dvae.save_pretrained(tmp_path / "tokenizer")


def test_a_given_tokenizer_is_taken_over_and_published(tokenizer, data, tmp_path):
    trained = train(RUN, data, tmp_path / "run", tokenizer=str(tokenizer), options=QUICK).model
    dvae = DVAE.from_pretrained(tokenizer)
    assert torch.equal(trained.tokenize(pixels()), dvae.tokenize(pixels()))
    loaded = BEiT.from_pretrained(tmp_path / "run")
    assert (loaded.config.tokenizer, loaded.config.tokenizer_hidden, loaded.config.tokenizer_blocks) == (None, 4, 2)
    assert torch.equal(loaded.tokenize(pixels()), dvae.tokenize(pixels()))
    assert torch.equal(loaded.decode(dvae.tokenize(pixels())), dvae.decode(dvae.tokenize(pixels())))


def test_pretraining_goes_on_from_what_is_published(tokenizer, data, tmp_path):
    train(dataclasses.replace(RUN, tokenizer=str(tokenizer)), data, tmp_path / "run", options=QUICK)
    first = BEiT.from_pretrained(tmp_path / "run")
    again = dataclasses.replace(first.config, seed=1)
    second = train(again, data, tmp_path / "again", init=tmp_path / "run", options=QUICK).model
    assert torch.equal(second.tokenize(pixels()), first.tokenize(pixels()))
    assert not torch.equal(second.encode(pixels()), first.encode(pixels()))


def test_without_a_tokenizer_one_is_trained_first_and_that_is_said(data, tmp_path, capsys, monkeypatch):
    sizes = {"image_size": 32, "hidden": 8, "blocks": 1, "decoder_init": 4, "vocab": 12}
    quick = DVAEConfig(**sizes, epochs=0.5, batch_size=8, precision="fp32")
    monkeypatch.setitem(PRESETS["dvae"], "demo", lambda: quick)
    trained = train(RUN, data, tmp_path / "run", tokenizer="demo", options=QUICK).model
    assert "no tokenizer given: training one first, preset 'demo', into" in capsys.readouterr().out
    dvae = DVAE.from_pretrained(tmp_path / "run" / "tokenizer")
    assert dvae.config.size == trained.config.tokenizer_size
    # neither has seen what is held out of the data
    seen = [np.fromfile(tmp_path / "run" / run / "trained_on.keys", np.uint64) for run in ("", "tokenizer")]
    assert 0 < len(seen[0]) < 32 and np.array_equal(*seen)
    assert torch.equal(trained.tokenize(pixels()), dvae.tokenize(pixels()))


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer, data, tmp_path):
    config = dataclasses.replace(RUN, tokenizer=str(tokenizer), vocab=16)
    with pytest.raises(ConfigError, match="vocab = 16: the tokenizer's is 12: give --vocab 12"):
        train(config, data, tmp_path / "run", options=QUICK)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": None}, "nothing brings a tokenizer"),
        ({"vocab": 0, "tokenizer_hidden": 0}, "an encoder alone cannot be pretrained"),
    ],
)
def test_a_run_that_would_have_no_tokens_is_refused(fields, message, data, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(dataclasses.replace(RUN, **fields), data, tmp_path / "run", options=QUICK)


def test_a_tokenizer_that_does_not_exist_is_named(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(dataclasses.replace(RUN, tokenizer="./nowhere"), data, tmp_path / "run", options=QUICK)
