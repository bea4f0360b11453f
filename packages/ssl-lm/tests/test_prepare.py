"""From texts to tokens on disk: nothing is lost or done twice, unreadable files are named."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from tiny_text import tiny_tokenizer, write_prepared, write_text

from ssl_core.config import ConfigError
from ssl_core.errors import DataError, InputError
from ssl_lm import GPTConfig, load_tokenizer, prepare_text, train_tokenizer
from ssl_lm import prepare as prepare_module
from ssl_lm import splits as splits_module
from ssl_lm.bytebpe import WordTable, applies
from ssl_lm.corpus import open_text, settle
from ssl_lm.duplicates import near_duplicates
from ssl_lm.shards import META, ShardError, Shards
from ssl_lm.splits import find_splits
from ssl_lm.texts import ROW, SEPARATOR, cut, list_files, read_piece
from ssl_lm.tokenizer import LONGEST_WORD, _short_words, special_ids
from ssl_testing import children

SMALL = GPTConfig(vocab_size=400, context=8, dim=8, depth=1, heads=1, eos_token_id=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 documents, and a hidden file that is not one."""
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for i in range(30):
        (tmp_path / "texts" / ("deep" if i % 3 else "") / f"{i:02d}.txt").write_text(write_text(20, seed=i))
    (tmp_path / "texts" / ".hidden").write_bytes(b"\0")
    return tmp_path / "texts"


def texts(out: Path, split: str) -> list[str]:
    """Every document of a prepared split, decoded."""
    tokenizer = load_tokenizer(out)
    source = open_text(out, config=SMALL, split=split)
    return [tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids, _ in source.texts()]


def test_every_document_comes_back_in_one_of_the_splits_with_an_eos_behind_it(folder, tmp_path):
    meta = prepare_text(folder, tmp_path / "out", tokenizer="train:500", held_out=0.2, workers=0)
    assert [sum(r["documents"] for r in records) for records in meta["splits"].values()] == [24, 6]
    written = sorted(file.read_text() for file in folder.rglob("*.txt"))
    assert sorted(texts(tmp_path / "out", "train") + texts(tmp_path / "out", "test")) == written
    source = open_text(tmp_path / "out", config=SMALL)
    assert all(ids[-1] == 3 and 3 not in ids[:-1] for ids, _ in source.texts())
    assert sum(size for _, size in source.texts()) == source.shards.bytes
    assert special_ids(source.tokenizer)["first_sentinel"] == source.tokenizer.get_vocab_size() - 1


def test_two_processes_write_what_one_writes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "SMALLEST", 1000)
    a = prepare_text(folder, tmp_path / "a", tokenizer="train:500", workers=0)
    b = prepare_text(folder, tmp_path / "b", tokenizer="train:500", workers=2)
    assert a == b and len(a["splits"]["train"]) > 5


def test_a_second_call_writes_only_a_damaged_shard(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = prepare_text(folder, out, tokenizer="train:500", workers=0)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert prepare_text(folder, out, tokenizer="train:500", workers=0) == first
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    shard = out / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert prepare_text(folder, out, tokenizer="train:500", workers=0) == first
    assert shard.read_bytes() != bytes(data)


def test_a_killed_preparation_resumes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "SMALLEST", 1000)
    whole = prepare_text(folder, tmp_path / "whole", tokenizer="train:500", workers=0)
    write, written = prepare_module.write_shard, []

    def write_and_die(file, *rest):
        written.append(file.name)
        if len(written) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, *rest)

    monkeypatch.setattr(prepare_module, "write_shard", write_and_die)
    ended = children.run(lambda: prepare_text(folder, tmp_path / "out", tokenizer="train:500", workers=0))
    assert ended.code == -signal.SIGKILL
    assert len((tmp_path / "out" / "done.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ShardError, match="not to the end"):
        Shards(tmp_path / "out", "train")
    again = []
    monkeypatch.setattr(
        prepare_module, "write_shard", lambda file, *rest: (again.append(file.name), write(file, *rest))[1]
    )
    meta = prepare_text(folder, tmp_path / "out", tokenizer="train:500", workers=0)
    assert meta["splits"] == whole["splits"]
    assert len(again) == sum(map(len, meta["splits"].values())) - 3 and not set(again) & set(written[:3])


def test_other_text_or_another_tokenizer_needs_another_folder(folder, tmp_path):
    prepare_text(folder, tmp_path / "out", tokenizer="train:500", workers=0)
    with pytest.raises(ShardError, match="for another tokenizer: give another --out"):
        prepare_text(folder, tmp_path / "out", tokenizer="train:600", workers=0)
    (folder / "00.txt").write_text("more")
    with pytest.raises(ShardError, match="from other text"):
        prepare_text(folder, tmp_path / "out", tokenizer="train:500", workers=0)
    with pytest.raises(ShardError, match="holds no prepared data"):
        prepare_text(folder, folder, tokenizer="train:500", workers=0)


def test_one_large_text_is_cut_into_shards_and_comes_back_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "SMALLEST", 500)
    monkeypatch.setattr(prepare_module, "SHORT_STRETCH", 300)
    text = "é — 雪\n\n\n    " + write_text(600).replace("value", "värde\n\n") + "end"
    (tmp_path / "one.txt").write_text(text)
    meta = prepare_text(tmp_path / "one.txt", tmp_path / "out", tokenizer="train:500", workers=0)
    assert len(meta["splits"]["train"]) > 20
    [start], [end] = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "test")
    assert start + end == text
    assert 0.03 < len(end) / len(text) < 0.08
    source = open_text(tmp_path / "out", config=SMALL)
    stream = source.shards.read(0, len(source.shards))
    assert stream.tolist().index(3) == len(stream) - 1, "the only end is where the held-out part begins"
    for a, b in [(0, 5), (3, 900), (len(stream) - 2, len(stream))]:
        assert np.array_equal(source.shards.read(a, b), stream[a:b])


def test_stretches_of_a_long_document_have_the_tokens_of_the_whole(monkeypatch):
    for name in ("STRETCH", "SHORT_STRETCH"):
        monkeypatch.setattr(prepare_module, name, 200)
    text = write_text(400, seed=3).replace("value", "  value\n\n   ") + "  \n\n  "
    [tokens] = prepare_module.tokenise(tiny_tokenizer(), [text])
    assert len(list(prepare_module._stretches(text, 200))) > 20
    assert tokens.tolist() == tiny_tokenizer().encode(text, add_special_tokens=False).ids


def test_a_table_of_words_gives_the_tokens_of_the_library(monkeypatch):
    tokenizer = tiny_tokenizer()
    assert applies(tokenizer) and not applies(train_tokenizer([write_text()], 420, "wordpiece"))
    rng, characters = np.random.default_rng(0), [chr(i) for i in range(1, 128)]
    spaces = [*" \n\t\r\x0b\x0c\x1c", "'", "'s", "'ll", "'re", "ab", "12", "  ", "\n\n", "_", "--"]
    texts = ["".join(rng.choice(characters + 8 * spaces, 300)) for _ in range(300)]
    texts += [write_text(50), "", " ", "naïve \n\n x", *(text + "\n雪 \n" + text for text in texts[:50])]
    monkeypatch.setattr(prepare_module, "SHORT_STRETCH", 100)
    table = WordTable(tokenizer)
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in prepare_module.tokenise(tokenizer, texts, table)] == expected
    monkeypatch.setattr("ssl_lm.bytebpe.MOST", 10)
    assert WordTable(tokenizer).tokens(texts[0]).tolist() == expected[0], "a table that is full begins anew"


def test_text_that_names_special_tokens_has_none(tmp_path):
    (tmp_path / "x.txt").write_text("one [SEP] two <extra_id_0> [PAD] naïve [SEP]")
    prepare_text(tmp_path / "x.txt", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    source = open_text(tmp_path / "out", config=SMALL)
    stream = source.shards.read(0, len(source.shards))
    assert (stream[:-1] >= 5).all() and (stream < 500 - 100).all() and stream[-1] == 3


def test_documents_inside_a_file_and_lines_of_json_are_documents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "many.txt").write_text(f"one\n{SEPARATOR}\ntwo\n{SEPARATOR}\n\n{SEPARATOR}\nthree\n")
    (tmp_path / "a" / "rows.jsonl").write_text('{"text": "four"}\n\n{"text": "five\\nfive"}\n')
    prepare_text(tmp_path / "a", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    source = open_text(tmp_path / "out", config=GPTConfig(vocab_size=500, context=2, dim=8, depth=1, heads=1))
    decoded = [source.tokenizer.decode(ids.tolist()) for ids, _ in source.texts()]
    assert decoded == ["one", "two", "three\n", "four", "five\nfive"]


def test_only_line_feeds_end_lines_of_json(tmp_path):
    documents = ["a\u2028b\u2029c", "d\x85e", "f\x0bg\x0ch\x1ci", "j"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents]
    (tmp_path / "rows.jsonl").write_bytes("\r\n".join(lines).encode())
    prepare_text(tmp_path / "rows.jsonl", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "out", "train") == documents


def test_folders_named_train_and_test_are_the_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "d" / split).mkdir(parents=True)
        (tmp_path / "d" / split / "x.txt").write_text(f"{split} {write_text(9)}")
    prepare_text(tmp_path / "d", tmp_path / "out", tokenizer="train:500", workers=0)
    assert [text.split()[0] for split in ("train", "test") for text in texts(tmp_path / "out", split)] == [
        "train",
        "test",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n ", "holds no text"),
        (b"GIF89a\0\0\1", "is binary: byte 6 is zero"),
        ("naïve\n".encode("latin1"), "is not UTF-8: byte 2 is 0xef. Convert it, with `iconv"),
    ],
    ids=["empty", "blank", "binary", "latin1"],
)
def test_a_file_without_text_is_refused(content, message, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_text(tmp_path / "x.txt", tmp_path / "out", tokenizer="train:500", workers=0)


def test_a_few_files_that_are_no_text_are_left_out_and_named_and_many_are_refused(folder, tmp_path):
    for i in range(3):
        (folder / f"bad{i}.txt").write_bytes(b"abc\0")
    meta = prepare_text(folder, tmp_path / "out", tokenizer="train:500", workers=0)
    assert sorted(name for name, _ in meta["left_out"]) == ["bad0.txt", "bad1.txt", "bad2.txt"]
    for i in range(11):
        (folder / f"bad{i}.txt").write_bytes(b"abc\0")
    with pytest.raises(InputError, match="11 lines or files of .* are no text: "):
        prepare_text(folder, tmp_path / "more", tokenizer="train:500", workers=0)


ROWS_AMONG = [
    ({"text": None}, "NoneType"),
    ({"text": 7}, "int"),
    ({"words": "x"}, "no object with a `text`"),
    (["x"], "no object with a `text`"),
    ({"text": "\ud800"}, "surrogates"),
]


@pytest.mark.parametrize(("row", "reason"), ROWS_AMONG, ids=lambda value: repr(value)[:20])
def test_a_row_without_a_text_is_left_out_alone_and_named(row, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "SMALLEST", 1000)
    rows = [{"text": write_text(2, seed=i)} for i in range(200)]
    lines = [json.dumps(line) for line in [*rows[:150], row, *rows[150:]]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    meta = prepare_text(tmp_path / "rows.jsonl", tmp_path / "out", tokenizer="train:500", workers=0)
    assert texts(tmp_path / "out", "train") + texts(tmp_path / "out", "test") == [row["text"] for row in rows]
    [(name, why)] = meta["left_out"]
    assert name == "rows.jsonl" and why.startswith("1 line, the first line 151: ") and reason in why


@pytest.mark.parametrize("bad", [b"x\xff", b"caf\xe9 au lait", b"a\0b", b"{not json"], ids=repr)
def test_one_bad_line_of_many_does_not_lose_its_file(bad, tmp_path):
    lines = [json.dumps({"text": f"line {i}"}).encode() for i in range(100)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*lines[:40], bad, *lines[40:]]))
    (tmp_path / "a.txt").write_bytes(b"\n".join([*lines[:40], bad, *lines[40:]]))
    prepare_text(tmp_path / "rows.jsonl", tmp_path / "json", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "json", "train") == [f"line {i}" for i in range(100)]
    meta = prepare_text(tmp_path / "a.txt", tmp_path / "text", tokenizer="train:500", held_out=0, workers=0)
    if bad != b"{not json":
        assert texts(tmp_path / "text", "train") == [b"\n".join(lines).decode()]
        assert [why.split(":")[0] for _, why in meta["left_out"]] == ["1 line, the first line 41"]


def test_the_end_of_a_document_in_a_bad_line_still_ends_it(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one two three\n\xff" + SEPARATOR.encode() + b"\nfour five six\n")
    prepare_text(tmp_path / "a.txt", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "out", "train") == ["one two three", "four five six\n"]


def test_a_null_row_of_a_data_set_is_left_out_alone(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [write_text(5, seed=i) for i in range(40)]
    (tmp_path / "rows").mkdir()
    table = datasets.Dataset.from_dict({"text": [*rows[:10], None, *rows[10:]]})
    table.to_parquet(str(tmp_path / "rows" / "train.parquet"))
    meta = prepare_text(f"hf:{tmp_path / 'rows'}", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "out", "train") == rows
    assert [why for _, why in meta["left_out"]] == ["1 line, the first row 11 of train: its text is NoneType"]


def test_many_bad_lines_are_refused(tmp_path):
    lines = ["{}"] * 11 + [json.dumps({"text": "a"})] * 200
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="11 lines or files of .* rows.jsonl: 11 lines, the first line 1: it is no"):
        prepare_text(tmp_path / "rows.jsonl", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)


def _folder(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("odd", ["", "\n"], ids=["empty", "blank"])
def test_the_test_part_is_a_share_of_the_bytes_whatever_files_are_empty(odd, tmp_path):
    for salt in range(8):
        files = {f"{salt}-{i:02d}.txt": odd if i < 10 else write_text(10 + 5 * (i % 7), seed=i) for i in range(46)}
        splits = find_splits(_folder(tmp_path / str(salt), files), 0.1)
        sizes = {split: sum(piece.size for piece in pieces) for split, pieces in splits.items()}
        assert sum(sizes.values()) == sum(map(len, files.values()))
        assert 0.05 < sizes["test"] / sum(sizes.values()) < 0.15


def test_of_a_few_files_the_smallest_is_held_out_and_of_one_file_the_end(tmp_path):
    two = _folder(tmp_path / "two", {"a.txt": write_text(300), "b.txt": write_text(100, seed=1), "c.txt": ""})
    splits = find_splits(two, 0.05)
    assert [[Path(piece.path).name for piece in pieces] for pieces in splits.values()] == [["a.txt"], ["b.txt"]]
    one = _folder(tmp_path / "one", {"a.txt": write_text(300), "b.txt": ""})
    prepare_text(one, tmp_path / "out", tokenizer="train:500", workers=0)
    assert texts(tmp_path / "out", "train")[0] + texts(tmp_path / "out", "test")[0] == write_text(300)


def test_a_test_part_without_text_is_an_error(tmp_path):
    (tmp_path / "one.txt").write_text("asingleword")
    for name, text in (("train", write_text()), ("test", " \n")):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "x.txt").write_text(text)
    for data in ("one.txt", "d"):
        with pytest.raises(InputError, match="the test part of .* holds no text.*--held-out"):
            prepare_text(tmp_path / data, tmp_path / f"{data}-out", tokenizer="train:500", workers=0)
    prepare_text(tmp_path / "one.txt", tmp_path / "all", tokenizer="train:500", held_out=0, workers=0)


def test_the_end_of_a_text_that_is_one_line_begins_with_a_word(tmp_path):
    text = write_text(200).replace("\n", " ").strip()
    (tmp_path / "one.txt").write_text(text)
    prepare_text(tmp_path / "one.txt", tmp_path / "out", tokenizer="train:500", held_out=0.1, workers=0)
    [train], [test] = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "test")
    assert train + test == text and test[0] == " " and 0.08 < len(test) / len(text) < 0.11


def prose(seed: int, words: int = 400) -> list[str]:
    """Words drawn from many, so that two texts share no run of words."""
    return [f"w{number}" for number in np.random.default_rng(seed).integers(5000, size=words)]


def test_near_duplicates_are_one_group_and_other_files_are_not(tmp_path):
    changed = prose(0)
    changed[100] = changed[300] = "other"
    header = prose(99, 60)
    files = {
        "a.txt": " ".join(prose(0)),
        "b.txt": " ".join(prose(1)),
        "copy.txt": " ".join(prose(0)),
        "changed.txt": "\n".join(changed).upper(),
        "h1.txt": " ".join(header + prose(2)),
        "h2.txt": " ".join(header + prose(3)),
        "short.txt": "w1",
    }
    folder = _folder(tmp_path / "d", files)
    groups = [[file.name for file in group] for group in near_duplicates([folder / name for name in files])]
    assert groups == [["a.txt", "copy.txt", "changed.txt"], ["b.txt"], ["h1.txt"], ["h2.txt"], ["short.txt"]]


def test_near_duplicates_are_on_one_side(tmp_path):
    files = {f"{i}-{copy}.txt": " ".join([*prose(i), f"copy {copy}"]) for i in range(12) for copy in range(3)}
    splits = find_splits(_folder(tmp_path / "d", files), 0.25)
    train, test = ({Path(piece.path).name.split("-")[0] for piece in pieces} for pieces in splits.values())
    assert not train & test and len(test) == 3 and len(train) == 9
    copies = _folder(tmp_path / "copies", {f"{i}.txt": write_text(30) for i in range(4)})
    with pytest.raises(InputError, match="nearly the same text.*--held-out 0"):
        find_splits(copies, 0.25)
    assert not find_splits(copies, 0)["test"]


@pytest.mark.parametrize(
    "text", ["a" * 10**6, " " * 10**6, "-" * 10**6, "語" * 5000, "ab " * 5000], ids=lambda t: t[:2]
)
def test_no_word_that_a_tokenizer_is_trained_on_is_long_and_none_is_lost(text):
    text = f"some words {text} and more"
    parts = list(_short_words(text))
    assert "".join(parts) == text
    assert max(len(run) for part in parts for run in re.findall(r"\S+|\s+", part)) <= LONGEST_WORD


def test_a_second_process_is_refused_while_one_prepares_and_the_folder_of_another_is_left_alone(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(ShardError, match="by another process: wait for it"):
        prepare_text(folder, out, tokenizer="train:500", workers=0)
    assert prepare_text(folder, out, tokenizer="train:500", workers=0)["splits"]["train"]
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ShardError, match="holds no prepared data"):
        prepare_text(folder, folder, tokenizer="train:500", workers=0)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_command_that_trains_a_tokenizer_says_so(folder, tmp_path, capsys):
    prepare_text(folder, tmp_path / "out", tokenizer="train:500", workers=0, progress=True)
    assert "training a tokenizer of 500 tokens on " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("nowhere", {}, "there is no 'nowhere'"),
        ("hollow", {}, "there is no file in"),
        ("t.txt", {"tokenizer": "train:much"}, "write train: and a number"),
        ("t.txt", {"tokenizer": "train:300"}, "give 361 or more"),
        ("t.txt", {"tokenizer": "./nowhere"}, "nowhere"),
        ("t.txt", {"tokenizer": "t.txt"}, "is no tokenizer"),
        ("t.txt", {"held_out": 1.0}, "held_out"),
        ("bad.jsonl", {}, "line 1: its `words` is int, not a string"),
    ],
    ids=str,
)
def test_errors_of_preparation_are_one_line(data, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hollow").mkdir()
    Path("t.txt").write_text(write_text())
    Path("bad.jsonl").write_text('{"words": 3}\n')
    with pytest.raises((InputError, FileNotFoundError), match=message):
        prepare_text(data, "out", **{"tokenizer": "train:500", "workers": 0, **options})


def test_a_data_set_of_the_datasets_library_is_prepared(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "rows").mkdir()
    rows = [write_text(5, seed=i) for i in range(40)]
    (tmp_path / "rows" / "train.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    meta = prepare_text(f"hf:{tmp_path / 'rows'}", tmp_path / "out", tokenizer="train:500", held_out=0.1, workers=0)
    assert [sum(r["documents"] for r in records) for records in meta["splits"].values()] == [36, 4]
    assert texts(tmp_path / "out", "train") + texts(tmp_path / "out", "test") == rows


def test_a_data_set_is_opened_once_and_a_row_counts_as_so_many_bytes(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "rows").mkdir()
    rows = [write_text(5, seed=i) for i in range(40)]
    (tmp_path / "rows" / "train.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    opened, load = [], datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: opened.append(name) or load(*name))
    monkeypatch.setattr(splits_module, "ROWS", 4)
    monkeypatch.setattr(splits_module, "SMALLEST", 8 * ROW)
    monkeypatch.setattr(splits_module, "TRAINED_ON", 20 * ROW)
    seen = []
    monkeypatch.setattr(
        prepare_module, "read_piece", lambda piece, bad: seen.append(piece.start) or read_piece(piece, bad)
    )
    meta = prepare_text(f"hf:{tmp_path / 'rows'}", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    assert len(opened) == 1
    assert [record["documents"] for record in meta["splits"]["train"]] == [8] * 5
    assert seen[:5] == [0, 8, 16, 24, 32], "the tokenizer is trained on every other piece"
    assert texts(tmp_path / "out", "train") == rows


def test_the_text_column_of_a_data_set_can_be_named(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "rows").mkdir()
    rows = [write_text(5, seed=i) for i in range(40)]
    (tmp_path / "rows" / "train.jsonl").write_text(
        "".join(json.dumps({"title": "a", "body": row}) + "\n" for row in rows)
    )
    data = f"hf:{tmp_path / 'rows'}"
    with pytest.raises(InputError, match=r"no column `text`; it has title, body: name .* hf:.*\?text="):
        prepare_text(data, tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    prepare_text(f"{data}?text=body", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "out", "train") == rows


ROWS_OF_TEXT = ["a, b", 'said "no"\nand left', "", "\r\nthird\u2028line", "é"]


@pytest.fixture(params=["x.csv", "x.TSV", "x.parquet", "x.jsonl"])
def table(request, tmp_path):
    """Writes rows of columns into a table of each kind."""

    def write(rows):
        file = tmp_path / request.param
        if file.suffix == ".parquet":
            datasets = pytest.importorskip("datasets")
            datasets.Dataset.from_list(rows).to_parquet(str(file), batch_size=2)
        elif file.suffix == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with file.open("w", newline="", encoding="utf-8-sig") as stream:
                writer = csv.writer(stream, delimiter="," if file.suffix == ".csv" else "\t")
                writer.writerows([[name.upper() for name in rows[0]], *(row.values() for row in rows)])
        return file

    return write


def test_a_row_of_a_table_is_a_document(table, tmp_path):
    file = table([{"id": "1", "text": text} for text in ROWS_OF_TEXT])
    prepare_text(file, tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "out", "train") == ROWS_OF_TEXT


def test_a_cell_may_hold_a_book(tmp_path):
    book = "some words " * 20_000
    (tmp_path / "x.csv").write_text(f'text,label\n"{book}",a\nshort,b\n')
    rows = [row for piece in find_splits(tmp_path / "x.csv", 0)["train"] for row in read_piece(piece, [])]
    assert rows == [(book, True), ("short", True)] and open_text(tmp_path / "x.csv", config=SMALL).raw[0] == book


def test_the_end_of_a_table_is_held_out_between_two_rows(table, tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "SMALLEST", 100)
    rows = [f'{i} "quoted",\n' + write_text(2, seed=i) for i in range(60)]
    prepare_text(table([{"text": row} for row in rows]), tmp_path / "out", tokenizer="train:500", workers=0)
    train, test = (texts(tmp_path / "out", split) for split in ("train", "test"))
    assert train + test == rows and 1 <= len(test) <= 6


def test_of_a_few_rows_the_last_is_held_out(table, tmp_path):
    rows = [write_text(20, seed=i) for i in range(3)]
    prepare_text(table([{"text": row} for row in rows]), tmp_path / "out", tokenizer="train:500", workers=0)
    assert [texts(tmp_path / "out", split) for split in ("train", "test")] == [rows[:2], rows[2:]]
    one = table([{"text": rows[0]}])
    with pytest.raises(InputError, match="the test part of .* holds no text"):
        prepare_text(one, tmp_path / "one", tokenizer="train:500", workers=0)


def test_the_column_of_a_table_is_text_or_the_only_one_or_the_one_that_is_named(table, tmp_path):
    file = table([{"title": "t", "body": text} for text in ROWS_OF_TEXT])
    with pytest.raises(InputError, match=r"has no column `text`; it has title, body: name .*\?text=COLUMN"):
        find_splits(file, 0)
    with pytest.raises(InputError, match=r"no column of texts 'boddy'; it has title, body. Did you mean body\?"):
        find_splits(f"{file}?text=boddy", 0)
    prepare_text(f"{file}?text=body", tmp_path / "a", tokenizer="train:500", held_out=0, workers=0)
    (tmp_path / "folder").mkdir()
    table([{"body": text} for text in ROWS_OF_TEXT]).rename(tmp_path / "folder" / file.name)
    prepare_text(tmp_path / "folder", tmp_path / "b", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "a", "train") == texts(tmp_path / "b", "train") == ROWS_OF_TEXT


def test_a_row_that_cannot_be_read_is_left_out_alone_and_named(tmp_path):
    rows = [
        b"id,text",
        *(b"%d,some words" % i for i in range(30)),
        b"7,caf\xe9",
        b"8",
        b"9,a,b",
        b"",
        b'1,"more\nwords"',
    ]
    (tmp_path / "x.csv").write_bytes(b"\n".join(rows))
    meta = prepare_text(tmp_path / "x.csv", tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)
    assert texts(tmp_path / "out", "train") == ["some words"] * 30 + ["more\nwords"]
    assert meta["left_out"] == [["x.csv", "3 lines, the first line 32: it is not UTF-8"]] or meta["left_out"] == [
        ("x.csv", "3 lines, the first line 32: it is not UTF-8")
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b'text\n"open\nmore\n', "x.csv, row 3: .*Mend its quotes"),
        ("x.csv", "text\nwörter\n".encode("utf-16"), "is binary|is not UTF-8"),
        ("x.csv", b"text\n", "holds no text"),
        ("x.parquet", b"PAR1 and no more", "x.parquet cannot be opened"),
    ],
    ids=str,
)
def test_a_table_that_cannot_be_read_is_named(name, content, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("datasets")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_text(tmp_path / name, tmp_path / "out", tokenizer="train:500", held_out=0, workers=0)


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    message = r"x.parquet needs the datasets library: pip install ssl-lm\[datasets\]"
    with pytest.raises(InputError, match=message):
        prepare_text(tmp_path / "x.parquet", tmp_path / "out")


def test_linked_folders_are_read_and_names_may_be_any_bytes(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "elsewhere").mkdir()
    odd = Path(os.fsdecode(b"caf\xe9 \x1b[31m.txt"))
    try:
        (tmp_path / "text" / odd).write_text(write_text(5, seed=1))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (tmp_path / "elsewhere" / "2.txt").write_text(write_text(5, seed=2))
    (tmp_path / "text" / "link").symlink_to(tmp_path / "elsewhere")
    assert list_files(tmp_path / "text") == [tmp_path / "text" / odd, tmp_path / "text" / "link" / "2.txt"]
    prepare_text(tmp_path / "text", tmp_path / "out", tokenizer="train:500", workers=0)
    found = texts(tmp_path / "out", "train") + texts(tmp_path / "out", "test")
    assert sorted(found) == sorted(write_text(5, seed=seed) for seed in (1, 2))


@pytest.mark.parametrize("name", ["valid", "dev", "Test"])
def test_a_test_folder_by_any_name_of_the_split_is_the_test_text(tmp_path, name):
    for part, seed in (("train", 1), (name, 2)):
        (tmp_path / "text" / part).mkdir(parents=True)
        (tmp_path / "text" / part / "1.txt").write_text(write_text(5, seed=seed))
    prepare_text(tmp_path / "text", tmp_path / "out", tokenizer="train:500", workers=0)
    assert texts(tmp_path / "out", "test") == [write_text(5, seed=2)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_passed_over_in_a_folder_and_refused_by_itself(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "1.txt").write_text(write_text(5))
    os.mkfifo(tmp_path / "text" / "p")
    (tmp_path / "text" / "2.txt").symlink_to(tmp_path / "text" / "p")
    assert list_files(tmp_path / "text") == [tmp_path / "text" / "1.txt"]
    with pytest.raises(InputError, match="give a text file"):
        prepare_text(tmp_path / "text" / "p", tmp_path / "out")


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_the_other_algorithms_train_a_tokenizer_with_the_same_special_tokens(algorithm):
    tokenizer = train_tokenizer([write_text()], 420, algorithm)
    ids = special_ids(tokenizer)
    assert [ids[f"{role}_token_id"] for role in ("pad", "unk", "cls", "sep", "mask", "eos")] == [0, 1, 2, 3, 4, 3]
    assert ids["first_sentinel"] == tokenizer.get_vocab_size() - 1
    assert tokenizer.decode(tokenizer.encode("alpha value").ids) == "alpha value"


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.txt").write_text("aaa")
    with pytest.raises(InputError, match="no token that ends a text"):
        prepare_text(tmp_path / "t.txt", tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"), workers=0)


class TestShards:
    @pytest.fixture
    def out(self, tmp_path):
        return write_prepared(tmp_path / "out", 9, 8)

    @pytest.mark.parametrize("suffix", [".bin", ".idx"])
    @pytest.mark.parametrize("size", [0, 100, -2])
    def test_a_truncated_shard_is_named(self, suffix, size, out):
        file = out / f"train-00000{suffix}"
        os.truncate(file, size if size >= 0 else file.stat().st_size + size)
        with pytest.raises(ShardError, match=r"train-00000.*cut short: run the `ssl-lm prepare`"):
            open_text(out, config=SMALL)

    def test_a_missing_shard_is_named(self, out):
        (out / "train-00000.bin").unlink()
        with pytest.raises(ShardError, match="train-00000.bin or its .idx is missing"):
            open_text(out, config=SMALL)

    def test_a_shard_of_another_tokenizer_is_named(self, out):
        meta = json.loads((out / META).read_text())
        (out / META).write_text(json.dumps({**meta, "tokenizer": "0" * 16}))
        with pytest.raises(ShardError, match="another tokenizer"):
            open_text(out, config=SMALL)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}'])
    def test_a_damaged_meta_is_named(self, text, out):
        (out / META).write_text(text)
        with pytest.raises(ShardError, match="is damaged"):
            open_text(out, config=SMALL)

    def test_a_vocabulary_that_is_not_the_models_is_refused(self, out):
        for size in (200, 399, 2000):
            with pytest.raises(ConfigError, match=f"vocab_size = {size}: the data's tokenizer has 400 tokens"):
                settle(GPTConfig(vocab_size=size), out)
        assert settle(GPTConfig(vocab_size=512), out).vocab_size == 512, "rows to spare"
        assert settle(GPTConfig(vocab_size=None), out).eos_token_id == 3
        with pytest.raises(ConfigError, match="eos_token_id = 5: it is 3"):
            settle(GPTConfig(vocab_size=None, eos_token_id=5), out)

    def test_text_that_is_not_prepared_says_so(self, tmp_path):
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(DataError, match="`ssl-lm prepare .* does it alone"):
            settle(SMALL, tmp_path / "a.txt")
        with pytest.raises(DataError, match="there is no"):
            settle(SMALL, tmp_path / "nowhere")


def test_pieces_of_a_file_cover_it_and_end_with_lines(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text(write_text(300))
    pieces = cut(file, 700)
    assert [p.start for p in pieces[1:]] == [p.end for p in pieces[:-1]] and pieces[0].start == 0
    data = file.read_bytes()
    assert all(data[p.end - 1 : p.end] == b"\n" for p in pieces)
    assert "".join(text for p in pieces for text, _ in read_piece(p, [])) == file.read_text()
    assert [ends for p in pieces for _, ends in read_piece(p, [])] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("gap", ["", "\n", "\r\n \n"])
def test_no_cut_takes_the_end_of_a_document_away(gap, tmp_path):
    documents = [write_text(2, seed=i).strip("\n") for i in range(12)]
    file = tmp_path / "x.txt"
    file.write_bytes(f"\n{gap}{SEPARATOR}\n".join(documents).encode())
    counts = set()
    for size in range(20, 160):
        found = [""]
        pieces = cut(file, size)
        for text, ended in (pair for piece in pieces for pair in read_piece(piece, [])):
            found[-1] += text
            found += [""] if ended else []
        assert [document.rstrip() for document in found] == [*documents, ""]
        counts.add(len(pieces))
    assert min(counts) < 8 < 20 < max(counts)
