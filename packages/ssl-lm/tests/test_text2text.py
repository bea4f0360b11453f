"""`ssl-lm text2text`: T5's answers, and the prefixes of its tasks."""

from __future__ import annotations

import pytest
import torch
from tiny_text import t5_config, tiny_tokenizer

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_lm.config import RECIPES, t5_small, t5_v1_1_small
from ssl_lm.t5 import T5
from ssl_lm.text2text import advice, answers, prompt
from ssl_lm.verbs import VERBS
from ssl_train.cli.main import main

CONFIG = t5_config(context=32)


@pytest.fixture
def t5() -> T5:
    torch.manual_seed(0)
    method = T5(CONFIG).eval()
    method.tokenizer = tiny_tokenizer()
    return method


def test_answers_are_those_of_the_texts_alone(t5):
    texts = ["alpha = beta", "def total(width):\n    return height", "x"]
    together = answers(t5, texts, max_new_tokens=6)
    assert together == [answers(t5, [text], max_new_tokens=6)[0] for text in texts]
    ids = torch.tensor([[*tiny_tokenizer().encode("x").ids, 3]])
    said = [token for token in t5.generate(ids, max_new_tokens=6)[0].tolist() if token not in (0, 3)]
    assert together[2] == tiny_tokenizer().decode(said, skip_special_tokens=False).strip()


def test_the_command_prints_an_answer_and_what_the_model_was_not_taught(t5, tmp_path, capsys):
    t5.save_pretrained(tmp_path / "run")
    command = ["text2text", str(tmp_path / "run"), "alpha", "--task", "sentiment", "--tokens", "4", "--beams", "2"]
    assert main(RECIPES, command, VERBS) == 0
    printed = capsys.readouterr()
    assert printed.out.rstrip("\n") == answers(t5, ["sst2 sentence: alpha"], num_beams=2, max_new_tokens=4)[0]
    assert "was taught no task" in printed.err


def test_tasks_have_the_papers_form():
    assert prompt("translate", "That is good.", language="German") == "translate English to German: That is good."
    assert prompt("summarize", "a long text") == "summarize: a long text"
    assert prompt("sentiment", "it is good") == "sst2 sentence: it is good"
    assert prompt("question", "Who?", context="I did.") == "question: Who? context: I did."


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        ("sing", {}, "no task 'sing'"),
        ("translate", {"language": "Latin"}, "not to Latin"),
        ("question", {}, "context"),
        ("summarize", {"context": "x"}, "context"),
    ],
)
def test_a_task_that_was_not_taught_is_an_error(task, options, reason):
    with pytest.raises(InputError, match=reason):
        prompt(task, "text", **options)


def test_advice_names_what_a_model_was_not_taught():
    with torch.device("meta"):
        taught, gated = T5(t5_small()), T5(t5_v1_1_small())
    for text in (
        "translate English to French: hello",
        "sst2 sentence: good",
        "no prefix",
        "mnli premise: a hypothesis: b",
    ):
        assert advice(taught, text) is None
    assert "sentiment analysis" in (advice(taught, "sentiment analysis: it is good") or "")
    assert "taught no task" in (advice(gated, "summarize: a text") or "")
    assert advice(gated, "The <extra_id_0> walks: slowly") is None


def test_an_empty_text_and_a_model_without_tokenizer_are_errors(t5):
    with pytest.raises(InputError, match="empty"):
        answers(t5, ["a", ""])
    with pytest.raises(InputError, match=r"without tokenizer\.json"):
        answers(T5(CONFIG), ["a"])


def test_a_tokenizer_with_other_sentinels_is_an_error(t5, tmp_path):
    other = T5(t5_config(context=32, first_sentinel=390))
    other.tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigError, match="first_sentinel = 390: it is 399"):
        T5.from_pretrained(other.save_pretrained(tmp_path / "run"))
