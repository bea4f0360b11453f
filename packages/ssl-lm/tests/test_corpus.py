"""Windows of prepared text, raw text, the built-in corpus, and the views."""

from __future__ import annotations

import ast
import csv
import json
import pickle
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import IDS, VOCABULARY, tiny_tokenizer, write_prepared, write_text

from ssl_core.errors import BadSample, DataError, InputError
from ssl_lm import GPT, GPTConfig
from ssl_lm.config import gpt_demo
from ssl_lm.corpus import Windows, modules, open_text, settle, stdlib
from ssl_lm.views import bag_of_tokens, blank, next_tokens, whole_text
from ssl_train.data.loader import Batches, Plan

CONFIG = GPTConfig(vocab_size=VOCABULARY, context=10, dim=8, depth=1, heads=1, **IDS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared") / "out", CONFIG.window, CONFIG.stride)


def test_windows_make_every_token_a_target_exactly_once(prepared):
    source = open_text(prepared, config=CONFIG)
    assert isinstance(source, Windows) and len(source) == 64
    rows = [source.load(i)["input_ids"] for i in range(64)]
    stream = source.shards.read(0, len(source.shards))
    assert all(row.dtype == torch.int64 and len(row) == 11 for row in rows)
    assert torch.cat([rows[0][:1], *(row[1:] for row in rows)]).tolist() == stream.tolist()
    assert source.name(1) == "train tokens 10 to 20"


def test_every_token_has_the_number_of_its_document(prepared):
    source = open_text(prepared, config=CONFIG)
    for i in range(64):
        sample = source.load(i)
        after_eos = torch.cat([torch.zeros(1, dtype=torch.bool), sample["input_ids"][:-1] == 3])
        assert torch.equal(sample["documents"], after_eos.long().cumsum(0))
    assert max(int(source.load(i)["documents"].max()) for i in range(64)) == 1, "no window holds two documents"


def test_a_source_goes_to_another_process_and_its_fingerprint_tells_data_apart(prepared, tmp_path):
    source = open_text(prepared, config=CONFIG)
    source.load(0)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.load(3)["input_ids"], source.load(3)["input_ids"])
    assert copy.fingerprint() == source.fingerprint()
    test = open_text(prepared, config=CONFIG, split="test")
    assert test.fingerprint() != source.fingerprint()


def test_batches_do_not_depend_on_workers_or_on_where_a_run_was_resumed(prepared):
    source, view, plan = open_text(prepared, config=CONFIG), next_tokens(CONFIG), Plan(64, 8, 2, 0)

    def ids(**options):
        batches = Batches(source, view, plan, **options)
        with batches.watched():
            return [parts[0]["input_ids"].tolist() for parts in batches]

    whole = ids()
    assert len(whole) == 16 and whole[:8] != whole[8:]
    assert sorted(tuple(row) for batch in whole[:8] for row in batch) == sorted(
        tuple(source.load(i)["input_ids"].tolist()) for i in range(64)
    )
    assert ids(workers=2) == whole
    assert ids(start=5) == whole[5:]


def test_text_shorter_than_a_window_is_refused(prepared):
    config = GPTConfig(vocab_size=VOCABULARY, context=1000, dim=8, depth=1, heads=1, **IDS)
    with pytest.raises(DataError, match="fewer than one sample of 1001: give more text or a smaller --context"):
        open_text(prepared, config=config)
    test = open_text(prepared, config=config, split="test")
    assert len(test) == 1 and len(test.load(0)["input_ids"]) == len(test.shards) < 1001


class TestRawText:
    def test_folders_are_labels_and_the_model_tokenises(self, tmp_path):
        for label, text in (("code", write_text(5)), ("prose", "some words")):
            (tmp_path / label).mkdir()
            (tmp_path / label / "a.txt").write_text(text)
        source = open_text(tmp_path, config=CONFIG)
        assert source.classes == ["code", "prose"] and source.labels.tolist() == [0, 1]
        assert [source.name(i) for i in range(2)] == ["code/a.txt", "prose/a.txt"]
        gpt = GPT(CONFIG)
        with pytest.raises(InputError, match="came without tokenizer.json"):
            gpt.attach(source)
        gpt.tokenizer = tiny_tokenizer()
        read = gpt.attach(source)
        assert read.load(1)["input_ids"].tolist() == tiny_tokenizer().encode("some words").ids[:10]
        assert [ids[-1] for ids, _ in read.texts()] == [3, 3] and [size for _, size in read.texts()][1] == 10

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("x.csv", 'text,label\n"a, b",yes\nc,no\n'),
            ("x.tsv", "label\ttext\nyes\ta, b\nno\tc\n"),
            ("x.jsonl", '{"text": "a, b", "label": "yes"}\n{"text": "c", "label": "no"}\n'),
        ],
    )
    def test_tables_have_labels(self, name, content, tmp_path):
        (tmp_path / name).write_text(content)
        source = open_text(tmp_path / name, config=CONFIG)
        assert source.raw == ["a, b", "c"] and source.classes == ["no", "yes"] and source.labels.tolist() == [1, 0]

    def test_only_line_feeds_separate_lines(self, tmp_path):
        texts = ["a\u2028b\x85c\x0b\x0c\x1c", 'd\r\n"e"\nf\r']
        with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (tmp_path / "x.jsonl").write_text("\n".join(rows), encoding="utf-8")
        for name in ("x.csv", "x.jsonl"):
            assert open_text(tmp_path / name, config=CONFIG).raw == texts

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.txt", b"", "is empty"),
            ("x.txt", b"a\0", "is binary"),
            ("x.txt", b"\xff\xfe", "is not UTF-8"),
            ("x.csv", b"id,words\n1,a\n", "no column `text`; it has id, words: name the one .*csv.text=COLUMN"),
            ("x.csv", b"text\n", "has no row"),
            ("x.jsonl", b"[1]\n", "is no object"),
            ("x.jsonl", b'{"text": "a"}\n{"label": "b"}\n', "line 2 has no `text`"),
            ("x.jsonl", b'{"text": "a"}\n{"text": null}\n', "line 2 has no `text`"),
        ],
        ids=str,
    )
    def test_a_file_that_is_not_text_is_named(self, name, content, message, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_text(tmp_path / name, config=CONFIG)

    def test_a_text_without_tokens_is_a_bad_sample_and_training_on_raw_text_is_refused(self, tmp_path):
        (tmp_path / "x.csv").write_text('text,label\n"",a\nb,c\n')
        source = open_text(tmp_path / "x.csv", config=CONFIG)
        with pytest.raises(BadSample, match="no tokens"):
            source.tokenised(tiny_tokenizer(), CONFIG).load(0)
        with pytest.raises(DataError, match="run `ssl-lm prepare` first"):
            source.load(0)

    def test_data_of_another_tokenizer_is_refused(self, prepared):
        gpt, source = GPT(CONFIG), open_text(prepared, config=CONFIG)
        assert gpt.attach(source) is source
        from ssl_lm import train_tokenizer

        gpt.tokenizer = train_tokenizer(["other words altogether " * 9], 380)
        with pytest.raises(InputError, match="another tokenizer than the model's"):
            gpt.attach(source)


def test_the_standard_library_is_split_by_module(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LM_CACHE", str(tmp_path))
    found = modules()
    monkeypatch.setattr("ssl_lm.corpus.modules", lambda: found[len(found) // 3 :])  # two thirds take two thirds as long
    config = settle(gpt_demo(), None)
    assert config.vocab_size == 2048 and config.eos_token_id == 3
    parts = {split: open_text(None, config=config, split=split) for split in ("train", "test")}
    size = {split: part.shards.bytes for split, part in parts.items()}
    assert size["train"] > 5e6 and 0.02 < size["test"] / size["train"] < 0.2
    text = parts["test"].tokenizer.decode(next(parts["test"].texts())[0].tolist())
    ast.parse(text)
    root = Path(sysconfig.get_path("stdlib"))
    assert any(file.read_text(errors="ignore") == text for file in root.rglob("*.py"))
    assert stdlib().parent == tmp_path
    monkeypatch.setattr("ssl_lm.corpus.prepare_splits", None)
    assert len(open_text("stdlib", config=config)) == len(parts["train"]), "it is prepared once"


def test_views_cut_and_pad_and_the_bag_counts():
    long, short = torch.arange(1, 30), torch.tensor([5, 6])
    view = whole_text(CONFIG)
    assert view({"input_ids": long})["views"][0].tolist() == list(range(1, 11))
    assert view({"input_ids": short})["views"][0].tolist() == [5, 6] + 8 * [0]
    unpadded = whole_text(GPTConfig(vocab_size=400, context=4))
    assert unpadded({"input_ids": short})["views"][0].tolist() == [5, 6, -1, -1]
    bag = bag_of_tokens(torch.tensor([[5, 5, 6, -1], [1029, 7, 7, 7]]))
    assert bag.shape == (2, 1024)
    assert bag[:, 5].tolist() == [0.5, 0.25] and bag[:, 7].tolist() == [0, 0.75] and bag[0].sum() == 0.75
    assert blank(CONFIG)["input_ids"].shape == (11,)
    sample = next_tokens(CONFIG)(blank(CONFIG), np.random.default_rng(0))
    assert sample["input_ids"].shape == (11,)


def test_strings_in_python_are_for_evaluations_and_text_to_train_on_lies_in_files():
    source = open_text(["one two", "three"], config=CONFIG)
    assert len(source) == 2 and source.name(1) == "texts[1]" and not source.prepared
    with pytest.raises(
        DataError, match=r"of type list: write the texts into a folder and give its name, data='texts/'"
    ):
        settle(CONFIG, ["one two", "three"])
    with pytest.raises(DataError, match="data is of type int"):
        open_text(3, config=CONFIG)
