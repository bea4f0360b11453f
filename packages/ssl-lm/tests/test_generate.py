"""Texts that are continued, what is measured of a model, what is drawn of it, and the commands for it."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_text import IDS, VOCABULARY, open_windows, tiny_tokenizer, write_prepared, write_text

from ssl_core.config import ConfigError
from ssl_core.errors import DataError
from ssl_core.method import load
from ssl_lm import BERT, GPT, T5, BERTConfig, GPTConfig, T5Config, complete
from ssl_lm.config import RECIPES
from ssl_lm.generate import Writer
from ssl_lm.measure import at_most, baselines, measure, measure_masked, parsing_share, perplexity
from ssl_lm.ngram import NGram
from ssl_lm.show import save_attention, save_text, show
from ssl_lm.verbs import VERBS
from ssl_train.cli.main import main
from ssl_train.options import RunOptions
from ssl_train.run import train

CONFIG = GPTConfig(
    vocab_size=VOCABULARY, context=24, dim=32, depth=2, heads=2, epochs=12, batch_size=8, base_lr=0.16,
    warmup_epochs=1, precision="fp32", **IDS,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a few seconds on the tiny text."""
    out = tmp_path_factory.mktemp("runs") / "run"
    data = write_prepared(out.parent / "data", CONFIG.window, CONFIG.stride)
    recipe = dataclasses.replace(RECIPES["gpt"], settle=None)
    train(recipe, CONFIG, data=data, out=out, options=RunOptions(workers=0, device="cpu"))
    return out


@pytest.fixture(scope="module")
def gpt(run):
    return GPT.from_pretrained(run)


def test_a_short_run_learns_more_than_how_frequent_tokens_are(run, gpt):
    source = gpt.attach(open_windows(run.parent / "data", config=CONFIG, split="test"))
    documents = list(source.texts())
    trained = perplexity(gpt, documents)["bits_per_byte"]
    torch.manual_seed(0)
    fresh = perplexity(GPT(CONFIG).eval(), documents)["bits_per_byte"]
    assert trained < 0.75 * baselines(source, documents)["unigram"] < fresh


class TestComplete:
    def test_a_batch_writes_what_each_prompt_writes_alone(self, gpt):
        prompts = ["alpha = ", "def beta(", "", "total = delta + gamma *"]
        together = complete(gpt, prompts, tokens=12, temperature=0)
        assert together == [complete(gpt, [p], tokens=12, temperature=0)[0] for p in prompts]
        assert any(together)

    def test_pieces_that_are_streamed_make_the_text(self, gpt):
        pieces = {0: [], 1: []}
        texts = complete(gpt, ["alpha", "def"], tokens=30, seed=3, on_text=lambda row, piece: pieces[row].append(piece))
        assert ["".join(pieces[row]) for row in (0, 1)] == texts
        assert len(pieces[0]) > 5

    def test_a_text_ends_before_its_stop_string(self, gpt):
        free = complete(gpt, ["alpha"], tokens=60, temperature=0)[0]
        stop = free[10:14]
        pieces = []
        stopped = complete(gpt, ["alpha"], tokens=60, temperature=0, stop=[stop], on_text=lambda _, p: pieces.append(p))
        assert stopped[0] == free[: free.index(stop)] == "".join(pieces)

    def test_a_prompt_longer_than_the_context_is_refused(self, gpt):
        with pytest.raises(ConfigError, match=r"prompt has \d+ tokens, more than the context of 24"):
            complete(gpt, [write_text(30)])

    def test_a_character_in_parts_and_the_beginning_of_a_stop_string_wait(self):
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


class TestPerplexity:
    def test_it_is_that_of_every_token_given_half_a_context_or_more(self, gpt):
        documents = [(np.random.default_rng(0).integers(4, 400, n), n) for n in (5, 24, 25, 90)]
        total, count, context = 0.0, 0, CONFIG.context
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

    def test_no_text_is_refused(self, gpt):
        with pytest.raises(DataError, match="no text to measure on"):
            perplexity(gpt, [])

    def test_whole_documents_are_taken_until_there_are_enough(self):
        documents = [(np.zeros(n), n) for n in (5, 5, 5)]
        assert [len(list(at_most(iter(documents), limit))) for limit in (1, 5, 6, 99)] == [1, 1, 2, 3]


class TestNGram:
    def test_its_probabilities_sum_to_one_after_every_history(self):
        rng = np.random.default_rng(0)
        model = NGram(rng.integers(6, size=200), 7, 3)
        for a, b in [(0, 1), (5, 5), (6, 6), (3, 6)]:
            p = [math.exp(-model.nll(np.array([a, b, c]))[0]) for c in range(7)]
            assert sum(p) == pytest.approx(1, abs=1e-9) and min(p) > 0

    def test_it_is_the_formula(self):
        stream = [0, 1, 0, 1, 0, 2]
        model = NGram(np.array(stream), 3, 2)
        uni = {0: 4 / 9, 1: 3 / 9, 2: 2 / 9}
        p = (2 + 2 * uni[1]) / (3 + 2)  # 0 is followed twice by 1 and once by 2
        assert math.exp(-model.nll(np.array([0, 1]))[0]) == pytest.approx(p)
        assert math.exp(-model.nll(np.array([2, 1]))[0]) == pytest.approx(uni[1]), "nothing was seen after 2"
        assert np.exp(-NGram(np.array(stream), 3, 1).nll(np.array([0, 2]))).tolist() == pytest.approx([uni[0], uni[2]])

    def test_longer_histories_tell_more_of_a_text_with_order(self):
        stream = np.tile([0, 1, 0, 2], 100)
        means = [NGram(stream, 3, order).nll(stream[:50]).mean() for order in (1, 2, 3)]
        assert means[0] > means[1] > means[2] and means[2] < 0.05
        with pytest.raises(ValueError, match="1, 2 or 3"):
            NGram(stream, 3, 4)


def test_lines_are_read_as_code_one_by_one():
    assert parsing_share(["x = 1\n\n    return y\nif a:\nfor in\n"]) == 3 / 4
    assert parsing_share([""]) == 0


def test_what_is_measured_of_prepared_and_of_raw_text(run, gpt, tmp_path):
    source = gpt.attach(open_windows(run.parent / "data", config=CONFIG, split="test"))
    figures = measure(gpt, source)
    assert figures["baselines"].keys() == {"unigram", "3-gram", "xz"} and "lines_that_parse" not in figures
    assert all(0 < value < 10 for value in figures["baselines"].values())
    assert f"GPT {figures['bits_per_byte']:.3f}" in figures["summary"][1]
    json.dumps(figures)
    (tmp_path / "a.txt").write_text(write_text(9))
    raw = measure(gpt, gpt.attach(open_windows(tmp_path / "a.txt", config=CONFIG)))
    assert "baselines" not in raw and raw["bytes"] == len(write_text(9))


def test_show_draws_attention_and_what_was_written_early_and_late(run, gpt, tmp_path):
    source = gpt.attach(open_windows(run.parent / "data", config=CONFIG, split="test"))
    (run / "figures").mkdir(exist_ok=True)
    captions = show(gpt, source, run / "figures")
    assert set(captions) == {"attention.png", "samples.png"}
    text = (run / "figures" / "samples.txt").read_text()
    assert re.findall("--- (.*)", text)[0] == "before training" and re.findall("--- (.*)", text)[-1] == "trained"
    with Image.open(run / "figures" / "attention.png") as picture:
        assert picture.size == (2 * (24 * 8 + 4), 2 * (24 * 8 + 4))
    maps = torch.zeros(1, 1, 2, 2)
    maps[0, 0, 1, 0] = 1
    save_attention(maps, tmp_path / "a.png", gap=0)
    with Image.open(tmp_path / "a.png") as picture:
        assert [picture.getpixel(place) for place in ((0, 0), (0, 191), (191, 191))] == [255, 0, 255]
    save_text("one\n\ttwo\n", tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.size[1] == 64 and picture.getextrema()[0] < 64


class TestCommands:
    def test_generate_writes_to_the_terminal(self, run, capsys):
        arguments = ["generate", str(run), "alpha = ", "--tokens", "20", "--temperature", "0", "--device", "cpu"]
        assert main(RECIPES, arguments, VERBS) == 0
        out = capsys.readouterr().out
        expected = complete(GPT.from_pretrained(run), ["alpha = "], tokens=20, temperature=0)[0]
        assert out == f"alpha = {expected}\n"
        assert main(RECIPES, ["generate", str(run), "alpha", "def", "--tokens", "5", "--seed", "1"], VERBS) == 0
        assert re.findall("--- \\d", capsys.readouterr().out) == ["--- 1", "--- 2"]

    def test_prepare_says_what_came_of_it(self, tmp_path, capsys, monkeypatch):
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
    def test_what_cannot_work_ends_with_2_and_a_line(self, line, message, run, tmp_path, monkeypatch, capsys):
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
    def test_labelled_text_is_probed_and_measured(self, name, figure, run, untrained, tmp_path, capsys):
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


@pytest.fixture
def untrained():
    """BERT, with and without whole words, and T5, as they begin."""
    torch.manual_seed(0)
    bert = BERTConfig(
        vocab_size=VOCABULARY, context=24, dim=16, depth=1, heads=2, unk_token_id=1, cls_token_id=2, sep_token_id=3,
        mask_token_id=4, first_sentinel=399, **IDS,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=VOCABULARY, context=24, dim=16, depth=1, decoder_depth=1, heads=2, head_dim=8, hidden=24,
        first_sentinel=399, **IDS,
    )  # fmt: skip
    models = {"bert": BERT(bert), "whole words": BERT(dataclasses.replace(bert, whole_words=True)), "t5": T5(t5)}
    for method in models.values():
        method.eval().tokenizer = tiny_tokenizer()
    return models


@pytest.mark.parametrize(
    ("verb", "name", "message"),
    [
        ("generate", "bert", "generate is for gpt, not for bert"),
        ("generate", "t5", "generate is for gpt, not for t5"),
        ("fill", "t5", "fill is for bert, not for t5"),
        ("text2text", "bert", "text2text is for t5, not for bert"),
    ],
)
def test_a_command_for_another_model_says_so(verb, name, message, untrained, tmp_path, capsys):
    folder = untrained[name].save_pretrained(tmp_path / "run")
    assert main(RECIPES, [verb, str(folder), "x"], VERBS) == 2
    assert capsys.readouterr().err == f"ssl-lm: {message}\n"


@pytest.mark.parametrize("name", ["bert", "whole words", "t5"])
def test_what_is_measured_of_the_other_models(name, untrained, tmp_path):
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
