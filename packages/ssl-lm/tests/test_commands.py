"""The command line of ssl-lm: its own verbs, and `evaluate` of text."""

from __future__ import annotations

import json
import re

import pytest
from tiny_text import write_text

from ssl_lm import GPT, complete
from ssl_lm.config import RECIPES
from ssl_lm.verbs import VERBS
from ssl_train.cli.main import main


def test_generate_writes_to_the_terminal(run, capsys):
    arguments = ["generate", str(run), "alpha = ", "--tokens", "20", "--temperature", "0", "--device", "cpu"]
    assert main(RECIPES, arguments, VERBS) == 0
    out = capsys.readouterr().out
    expected = complete(GPT.from_pretrained(run), ["alpha = "], tokens=20, temperature=0)[0]
    assert out == f"alpha = {expected}\n"
    assert main(RECIPES, ["generate", str(run), "alpha", "def", "--tokens", "5", "--seed", "1"], VERBS) == 0
    assert re.findall("--- \\d", capsys.readouterr().out) == ["--- 1", "--- 2"]


def test_generated_texts_are_json_for_scripts(run, capsys):
    line = ["generate", str(run), "the", "--tokens", "5", "--seed", "0", "--device", "cpu"]
    assert main(RECIPES, [*line, "--json"], verbs=VERBS) == 0
    said = capsys.readouterr()
    texts = json.loads(said.out)["texts"]
    assert len(texts) == 1 and texts[0].strip() in said.err
    assert main(RECIPES, [*line, "--quiet"], verbs=VERBS) == 0
    assert capsys.readouterr().out == f"the{texts[0]}\n", "a text is the result"


def test_a_long_prompt_is_a_text_and_not_the_name_of_a_file(run, capsys):
    assert main(RECIPES, ["generate", str(run), "the cat " * 40, "--tokens", "1", "--device", "cpu"], verbs=VERBS) in (
        0,
        2,
    )
    assert "file name too long" not in capsys.readouterr().err


def test_prepare_prints_what_it_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text(write_text(400))
    assert main(RECIPES, ["prepare", "mine.txt", "--tokenizer", "train:500", "--workers", "0"], VERBS) == 0
    out = capsys.readouterr().out
    assert re.search(r"train: [\d,]+ tokens of [\d,]+ bytes, \d\.\d\d bytes a token", out)
    assert "ssl-lm train --data mine-tokens" in out and (tmp_path / "mine-tokens" / "meta.json").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["prepare", "nowhere"], "there is no 'nowhere'"),
        (["generate", "./nowhere"], "nowhere"),
        (["generate", "RUN", "alpha " * 99], "more than the context"),
        (["generate", "RUN", "a", "--top-p", "2"], "top_p"),
        (["train", "--data", "DATA", "--vocab-size", "1000"], "--vocab-size 400"),
        (["evaluate", "RUN", "--data", "empty.txt"], "is empty"),
    ],
    ids=str,
)
def test_bad_input_ends_with_exit_code_2_and_one_line(line, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    places = {"RUN": str(run), "DATA": str(run.parent / "data")}
    assert main(RECIPES, [places.get(word, word) for word in line], VERBS) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") <= 2


@pytest.mark.parametrize(
    ("name", "figure"),
    [("gpt", "perplexity"), ("bert", "pseudo_perplexity"), ("whole words", "pseudo_perplexity"), ("t5", None)],
)
def test_labelled_text_is_probed_and_measured(name, figure, run, untrained, tmp_path, capsys):
    rows = [
        f"{write_text(2, seed=i)!r},code" if i % 2 else f"{'some plain words ' * (1 + i % 5)!r},prose"
        for i in range(60)
    ]
    text = "text,label\n" + "\n".join(row.replace("'", '"', 2).replace("\\n", " ") for row in rows)
    (tmp_path / "labels.csv").write_text(text)
    weights, out = run if name == "gpt" else untrained[name].save_pretrained(tmp_path / "run"), tmp_path / "e"
    arguments = ["evaluate", str(weights), "--data", str(tmp_path / "labels.csv"), "--protocols", "knn"]
    assert main(RECIPES, [*arguments, "--out", str(out), "--device", "cpu"], VERBS) == 0
    shown = capsys.readouterr().out
    assert "bag of tokens" in shown and (figure or "k-NN").replace("_", "-") in shown
    result = json.loads((out / "evaluation.json").read_text())
    assert [row["features"] for row in result["rows"]] == ["pretrained", "random init", "bag of tokens"]
    assert set(result["measured"]) >= ({"summary"} if figure is None else {"summary", figure})
    assert "unigram_entropy" not in result["measured"], "only prepared text has windows"


@pytest.mark.parametrize(
    ("verb", "name", "message"),
    [
        ("generate", "bert", "generate is for gpt, not for bert"),
        ("generate", "t5", "generate is for gpt, not for t5"),
        ("fill", "t5", "fill is for bert, not for t5"),
        ("text2text", "bert", "text2text is for t5, not for bert"),
    ],
)
def test_a_command_for_another_model_names_both(verb, name, message, untrained, tmp_path, capsys):
    folder = untrained[name].save_pretrained(tmp_path / "run")
    assert main(RECIPES, [verb, str(folder), "x"], VERBS) == 2
    assert capsys.readouterr().err == f"ssl-lm: {message}\n"
