"""`ssl-lm fill`: words for a mask, and the errors if there are none."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_text import VOCABULARY, bert_config, tiny_tokenizer

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_lm.bert import BERT
from ssl_lm.config import RECIPES
from ssl_lm.fill import fill
from ssl_lm.masking import word_starts
from ssl_lm.tokenizer import train_tokenizer
from ssl_lm.verbs import VERBS
from ssl_train.cli.main import main

CONFIG = bert_config(context=32)


@pytest.fixture
def bert() -> BERT:
    torch.manual_seed(0)
    method = BERT(CONFIG).eval()
    method.tokenizer = tiny_tokenizer()
    with torch.no_grad():  # a head that prefers " =" whatever it reads, then " +"
        for word, bias in (("Ġ=", 9.0), ("Ġ+", 8.0)):
            method.cls["predictions"].bias[tiny_tokenizer().token_to_id(word)] = bias
    return method


def test_every_mask_gets_words_and_probabilities_that_fall(bert):
    rows = fill(bert, "total = [MASK] + [MASK] * 3", top_k=5)
    assert len(rows) == 2
    for row in rows:
        assert [word for word, _ in row[:2]] == ["=", "+"]
        shares = [share for _, share in row]
        assert len(row) == 5 and shares == sorted(shares, reverse=True) and 0.5 < sum(shares) < 1


def test_the_space_before_a_mask_belongs_to_its_word(bert):
    seen = []
    plain = bert.fill
    bert.fill = lambda tokens, top_k: seen.append(tokens) or plain(tokens, top_k)
    fill(bert, "a [MASK] b")
    tokenizer = tiny_tokenizer()
    assert seen[0][0].tolist() == [2, *tokenizer.encode("a").ids, 4, *tokenizer.encode(" b").ids, 3]


def test_the_command_prints_them(bert, tmp_path, capsys):
    bert.save_pretrained(tmp_path / "run")
    assert main(RECIPES, ["fill", str(tmp_path / "run"), "total = [MASK]", "--top-k", "2"], VERBS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "total = [MASK]" and len(lines) == 3
    assert lines[1].split()[1] == "=" and lines[2].split()[1] == "+"


def test_special_tokens_that_a_config_leaves_open_come_from_the_tokenizer(bert, tmp_path):
    folder = bert.save_pretrained(tmp_path / "run")
    bert.config = dataclasses.replace(CONFIG, mask_token_id=None, cls_token_id=None, sep_token_id=None)
    folder = bert.save_pretrained(tmp_path / "again")
    assert BERT.from_pretrained(folder).config == CONFIG


def test_another_tokenizer_than_the_models_is_an_error(bert, tmp_path):
    bert.config = dataclasses.replace(CONFIG, mask_token_id=7)
    folder = bert.save_pretrained(tmp_path / "run")
    with pytest.raises(ConfigError, match="mask_token_id = 7: it is 4"):
        BERT.from_pretrained(folder)
    bigger = BERT(dataclasses.replace(CONFIG, vocab_size=VOCABULARY + 500, first_sentinel=None))
    bigger.tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigError, match="vocab_size"):
        BERT.from_pretrained(bigger.save_pretrained(tmp_path / "bigger"))


@pytest.mark.parametrize(
    ("text", "top_k", "reason"),
    [("no mask", 5, r"has no \[MASK\]"), ("[MASK]" * 40, 5, "40 tokens, the model reads 30"), ("[MASK]", 0, "top_k")],
)
def test_texts_that_cannot_be_filled_are_errors(bert, text, top_k, reason):
    with pytest.raises(InputError, match=reason):
        fill(bert, text, top_k=top_k)


def test_a_model_without_tokenizer_is_an_error():
    with pytest.raises(InputError, match=r"without tokenizer\.json"):
        fill(BERT(CONFIG), "a [MASK]")


def test_words_begin_where_the_tokenizer_says():
    text = ["playing players played plays playing"] * 50
    pieces = train_tokenizer(text, 400, "wordpiece")
    starts = word_starts(pieces)
    ids = pieces.encode("players playing").ids
    assert int(starts[ids].sum()) == 2 and bool(starts[ids][0])
    letters = tiny_tokenizer()
    ids = letters.encode("total = width").ids
    assert int(word_starts(letters)[ids].sum()) == 2, "the two with a space; what begins the text has none"


def test_words_that_are_white_space_are_shown(bert, tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for word, bias in (("Ċ", 20.0), ("Ġ", 19.0)):
            bert.cls["predictions"].bias[tokenizer.token_to_id(word)] = bias
    folder = bert.save_pretrained(tmp_path / "run")
    assert main(RECIPES, ["fill", str(folder), "total [MASK]", "--top-k", "2", "--device", "cpu"], VERBS) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["[MASK]", "\\n", "(space)"]
