"""Files of a folder, sub-folders that are splits, and files that would hang their reader."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_train.cli.commands import write_json
from ssl_train.data.files import class_names, open_file, printable, split_folder, walk
from ssl_train.data.images import read_image
from ssl_train.data.loader import Batches, Plan
from ssl_train.data.names import number_labels, read_table
from ssl_train.data.sources import open_source
from ssl_train.evaluate.features import extract

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def save(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)
    return file


# --- splits


@pytest.mark.parametrize(
    ("first", "second"),
    [("train", "valid"), ("train", "validation"), ("train", "dev"), ("Train", "Test"), ("Training", "Testing")],
)
def test_splits_by_any_of_their_names_are_no_classes(tmp_path: Path, first, second):
    for name in (f"{first}/cat/1.png", f"{first}/dog/1.png", f"{second}/cat/2.png"):
        save(tmp_path / name)
    train, test = open_source(tmp_path), open_source(tmp_path, split="test")
    assert [train.classes, train.labels.tolist()] == [["cat", "dog"], [0, 1]]
    assert [test.classes, test.labels.tolist()] == [["cat", "dog"], [0]]
    assert split_folder(tmp_path, "test") == tmp_path / second


def test_test_data_come_before_validation_data(tmp_path: Path):
    for name in ("train", "dev", "val", "test"):
        (tmp_path / name).mkdir()
    assert split_folder(tmp_path, "test").name == "test"


def test_a_train_folder_alone_holds_the_classes(tmp_path: Path):
    for name in ("train/cat/1.png", "train/dog/1.png", "loose.png"):
        save(tmp_path / name)
    source = open_source(tmp_path)
    assert [source.name(i) for i in range(3)] == ["loose.png", "train/cat/1.png", "train/dog/1.png"]
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [-1, 0, 1])
    with pytest.raises(NoTestSplit):
        open_source(tmp_path, split="test")


@pytest.mark.parametrize("names", [("all", "test"), ("val", "test"), ("cat", "dog", "Dev")])
def test_a_split_beside_other_folders_is_refused_as_a_class(tmp_path: Path, names):
    for name in names:
        save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match="a split and not a class: make it train/ and test/"):
        open_source(tmp_path)


def test_two_spellings_of_one_split_are_refused(tmp_path: Path):
    for name in ("train", "Train", "test"):
        (tmp_path / name).mkdir(exist_ok=True)
    if len(os.listdir(tmp_path)) < 3:
        pytest.skip("this file system does not tell cases apart")
    with pytest.raises(DataError, match="Train and train: leave one"):
        split_folder(tmp_path, "train")


def test_classes_are_first_sub_folders():
    assert class_names(Path("d"), ["a/1", "b/test/2", "3"]) == ["a", "b", ""]


# --- the walker


def test_linked_folders_are_entered_once_and_a_skipped_one_never(tmp_path: Path):
    for name in ("data/1.png", "elsewhere/2.png", "data/out/3.png"):
        save(tmp_path / name)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "link" / "back").symlink_to(tmp_path / "data")
    assert walk(tmp_path / "data", (".png",), tmp_path / "data" / "out") == ["1.png", "link/2.png"]


def test_a_path_that_is_too_long_is_named_and_the_rest_is_found(tmp_path: Path, monkeypatch):
    save(tmp_path / "data" / "1.png")
    monkeypatch.chdir(tmp_path / "data")
    for _ in range(20):
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    with pytest.warns(UserWarning, match="x… below .* is too long and is left out"):
        assert walk(tmp_path / "data", (".png",)) == ["1.png"]


def test_names_print_on_one_line_whatever_they_hold():
    name = os.fsdecode(b"caf\xe9 \x1b[31m\n\xf0\x9f\x90\x88.png")
    assert printable(name) == "caf\\udce9 \\x1b[31m\\n\U0001f408.png"
    assert printable("über uns/a b.png") == "über uns/a b.png"


ODD = os.fsdecode(b"caf\xe9\x1b[31m.png")


def test_json_files_keep_names_of_any_bytes(tmp_path: Path):
    write_json(tmp_path, "evaluation.json", {"classes": [ODD, "über"]})
    text = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    assert "über" in text
    assert json.loads(text) == {"classes": [ODD, "über"]}


def test_unreadable_files_are_named_in_escapes(tmp_path: Path):
    try:
        (tmp_path / ODD).write_bytes(b"no")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    for value in range(3):
        save(tmp_path / f"{value}.png")
    source = open_source(tmp_path)
    batches = Batches(source, lambda sample, rng: {"views": [sample["image"]]}, Plan(4, 4, 1, 0))
    with pytest.warns(UserWarning, match=r"^caf\\udce9\\x1b\[31m\.png is unreadable"), batches.watched():
        assert len(list(batches)) == 1
    with pytest.warns(UserWarning, match=r"left out: caf\\udce9\\x1b\[31m\.png: not an image"):
        found = extract(lambda x: x.float().mean((2, 3)), source, lambda sample, rng: {"views": [sample["image"]]})
    assert found.skipped[0][0] == ODD, "what is stored is the name itself"


# --- what is no regular file


@pipes
def test_pipes_and_devices_are_refused_at_once_also_through_links(tmp_path: Path):
    os.mkfifo(tmp_path / "p")
    (tmp_path / "link.png").symlink_to(tmp_path / "p")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("p", "link.png", "zero.png"):
        with pytest.raises(OSError, match="a pipe, socket or device, not a file"):
            open_file(tmp_path / name)
    with pytest.raises(BadSample, match="a pipe, socket or device"):
        read_image(tmp_path / "link.png")
    save(tmp_path / "1.png")
    assert walk(tmp_path, (".png",)) == ["1.png"]


@pipes
@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "data.npz"])
def test_data_that_are_a_pipe_are_refused_at_once(tmp_path: Path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="a pipe, socket or device"):
        list(read_table(tmp_path / name)[1]) if name == "table.jsonl" else open_source(tmp_path / name)


@pipes
def test_a_row_that_names_a_pipe_is_a_bad_sample(tmp_path: Path):
    os.mkfifo(tmp_path / "p")
    (tmp_path / "table.csv").write_text("path\np\n")
    with pytest.raises(BadSample, match="a pipe, socket or device"):
        open_source(tmp_path / "table.csv").load(0)


# --- labels and tables


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        (["01", "1", "2"], ["01", "1", "2"]),
        (["007", "7", "10", "-1", ""], ["007", "7", "10"]),
        (["1_0", "10", "9"], ["9", "10", "1_0"]),
        (["\uff11", "1"], ["1", "\uff11"]),
        (["b", "a", "-1"], ["-1", "a", "b"]),
    ],
)
def test_words_that_differ_are_different_classes(words, classes):
    labels, found = number_labels(words)
    assert found == classes
    assert labels.tolist() == [classes.index(word) if word in classes else -1 for word in words]


def test_a_header_with_one_name_twice_is_refused(tmp_path: Path):
    (tmp_path / "table.csv").write_text("path,path\n1.png,2.png\n")
    with pytest.raises(DataError, match="the header has path more than once"):
        open_source(tmp_path / "table.csv")


@pytest.mark.parametrize("member", ["images", "labels"])
def test_a_member_that_is_no_array_is_named(tmp_path: Path, member):
    if member == "labels":
        np.savez(tmp_path / "data.npz", images=np.zeros((2, 4, 4), np.uint8))
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        archive.writestr(member, "no array")
    with pytest.raises(DataError, match=f"member '{member}' is not an array"):
        open_source(tmp_path / "data.npz")
