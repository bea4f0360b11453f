"""Where pairs come from, and what is said when they cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_clip.captions import TokenizedPairs
from ssl_clip.config import RECIPES, CLIPConfig
from ssl_clip.pairs import CaptionedScenes, open_pairs
from ssl_clip.tokenizer import Tokenizer
from ssl_clip.views import PairView, build
from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_train.data.scenes import CLASSES, held_out
from ssl_train.opened import Opened

CONFIG = CLIPConfig(image_size=32, patch_size=8, vocab_size=600, eos_token_id=599, context_length=8)


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (40, 30), (i * 20, 100, 50)).save(folder / name)
    return folder


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", 'path,caption\na.png,"a red, round thing"\nb.png,blue\na.png,again\n'),
        ("pairs.tsv", "image\ttext\na.png\ta red, round thing\nb.png\tblue\na.png\tagain\n"),
        ("semi.csv", "caption;path\na red, round thing;a.png\nblue;b.png\nagain;a.png\n"),
        (
            "pairs.jsonl",
            '{"path": "a.png", "caption": ["a red, round thing", "again"]}\n{"path": "b.png", "caption": "blue"}\n',
        ),
    ],
)
def test_tables_of_pairs(name, content, tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    source = open_pairs(written(tmp_path / name, content), config=CONFIG)
    assert [source.name(i) for i in range(len(source))] == ["a.png", "b.png"]
    assert [source.texts(i) for i in (0, 1)] == [["a red, round thing", "again"], ["blue"]]
    assert source.load(1)["image"].shape == (3, 30, 40)
    assert sorted(source.captions()) == ["a red, round thing", "again", "blue"]


def test_captions_beside_the_images_and_their_splits(tmp_path):
    for part in ("train", "test"):
        written(pictures(tmp_path / part, f"{part}.png") / f"{part}.txt", "one\n\ntwo\n")
    for part in ("train", "test"):
        source = open_pairs(tmp_path, config=CONFIG, split=part)
        assert (len(source), source.texts(0), source.load(0)["image"].ndim) == (1, ["one", "two"], 3)


def test_pairs_are_divided_by_their_pictures(tmp_path):
    rows = ["path,caption"]
    for i in range(20):
        for name in (f"{i}.png", f"copy-of-{i}.png"):
            Image.new("RGB", (40, 30), (i * 10, 100, 50)).save(tmp_path / name)
            rows += [f"{name},picture {i}", f"{name},again {i}"]
    opened = Opened(RECIPES["clip"], CONFIG, written(tmp_path / "pairs.csv", "\n".join(rows)))
    train, test = opened.raw("train"), opened.raw("test")
    assert len(train) + len(test) == 40
    words = [{text.split()[1] for i in range(len(part)) for text in part.texts(i)} for part in (train, test)]
    assert words[0].isdisjoint(words[1]) and len(words[0] | words[1]) == 20, "a picture and its copy stay together"
    assert list(test.captions()) == [text for i in range(len(test)) for text in test.texts(i)], "of this part alone"
    assert len(test.texts(0)) == 2 and test.load(0)["image"].shape == (3, 30, 40)


def test_a_data_set_of_the_datasets_package(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures(tmp_path, "a.png", "b.png")
    rows = {"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], "caption": ["one", "two"]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "saved"))
    source = open_pairs(f"hf:{tmp_path / 'saved'}", config=CONFIG)
    assert [source.texts(i) for i in (0, 1)] == [["one"], ["two"]] and source.load(0)["image"].ndim == 3
    assert list(source.captions()) == ["one", "two"]
    part = Opened(RECIPES["clip"], CONFIG, f"hf:{tmp_path / 'saved'}").raw("train")
    assert len(part) == 1 and part.texts(0) == list(part.captions()), "the other one is held out"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.csv", "path,caption\na.png,\n", r"pairs\.csv, row 2: the caption of 'a\.png' is missing or empty"),
        ("pairs.csv", "path,caption\na.png,x\nb.png,  \n", "row 3: the caption of 'b.png' is missing"),
        ("pairs.csv", "path,caption\na.png\n", "row 2: 1 columns, the header has 2"),
        ("pairs.csv", "where,what\na.png,x\n", "name two of them 'path' and 'caption'"),
        ("pairs.csv", "path,caption\n", "holds no pair"),
        ("pairs.csv", "path,caption\n../a.png,x\n", "leaves the file's folder"),
        ("pairs.jsonl", '{"path": "a.png", "caption": null}\n', "line 1: the caption of 'a.png' is missing"),
        ("pairs.jsonl", '{"path": "a.png", "caption": "x"}\n{"caption": "x"}\n', "line 2 has no 'path'"),
        ("pairs.jsonl", "[1]\n", r"line 1: '\[1\]\\n' is no object"),
        ("pairs.jsonl", '{"path": \n', "cannot read"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_row(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        open_pairs(written(tmp_path / name, content), config=CONFIG)


def test_an_image_without_a_caption_beside_it_is_named(tmp_path):
    written(pictures(tmp_path, "a.png", "b.png") / "a.txt", "one\n")
    with pytest.raises(DataError, match=r"1 of 2 images have no caption, the first .*b\.png"):
        open_pairs(tmp_path, config=CONFIG)
    written(tmp_path / "b.txt", "\n")
    with pytest.raises(DataError, match="missing or empty"):
        open_pairs(tmp_path, config=CONFIG)


def test_a_readme_and_what_is_hidden_are_no_captions_and_no_pictures(tmp_path):
    pictures(tmp_path, "a.png", ".b.png", "c.png")
    pictures(tmp_path / ".trash", "d.png")
    written(tmp_path / "README.txt", "where these are from\n")
    assert not hasattr(open_pairs(tmp_path, config=CONFIG), "captions"), "pictures alone, and a readme"
    written(tmp_path / "a.txt", "one\n")
    written(tmp_path / "c.txt", "two\n")
    source = open_pairs(tmp_path, config=CONFIG)
    assert [source.name(i) for i in range(len(source))] == ["a.png", "c.png"]
    assert list(source.captions()) == ["one", "two"]


def test_images_alone_can_be_opened_but_not_trained_on(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / name, "1.png")
    source = open_pairs(tmp_path, config=CONFIG)
    assert source.classes == ["cat", "dog"]
    with pytest.raises(DataError, match="have no captions, which training needs"):
        build(CONFIG).check(source)


def test_captions_in_class_folders_keep_the_classes(tmp_path):
    for name in ("cat", "dog"):
        written(pictures(tmp_path / name, "1.png") / "1.txt", f"a {name}\n")
    source = open_pairs(tmp_path, config=CONFIG)
    assert (source.classes, source.labels.tolist(), source.texts(1)) == (["cat", "dog"], [0, 1], ["a dog"])
    pairs = TokenizedPairs(source, Tokenizer.trained(source.captions(), 600), CONFIG)
    assert (pairs.classes, pairs.labels.tolist()) == (["cat", "dog"], [0, 1])


@pytest.mark.parametrize("second", ["valid", "dev"])
def test_captions_in_splits_of_class_folders_keep_the_classes(second, tmp_path):
    for name in ("train/cat", "train/dog", f"{second}/dog"):
        written(pictures(tmp_path / name, "1.png") / "1.txt", "a pet\n")
    train, test = (open_pairs(tmp_path, config=CONFIG, split=split) for split in ("train", "test"))
    assert (train.classes, train.labels.tolist()) == (["cat", "dog"], [0, 1])
    assert (test.classes, test.labels.tolist()) == (["cat", "dog"], [1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", "path,caption,label\na.png,one,dog\nb.png,two,cat\na.png,more,dog\nc.png,three,\n"),
        (
            "pairs.jsonl",
            '{"path": "a.png", "caption": ["one", "more"], "label": "dog"}\n'
            '{"path": "b.png", "caption": "two", "label": "cat"}\n{"path": "c.png", "caption": "three"}\n',
        ),
    ],
)
def test_tables_of_pairs_keep_their_labels(name, content, tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    source = open_pairs(written(tmp_path / name, content), config=CONFIG)
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [1, 0, -1])
    assert source.texts(0) == ["one", "more"]


def test_a_picture_with_two_labels_is_refused(tmp_path):
    pictures(tmp_path, "a.png")
    table = written(tmp_path / "p.csv", "path,caption,label\na.png,one,dog\na.png,two,cat\n")
    with pytest.raises(DataError, match=r"row 3: 'a.png' has the labels 'dog' and 'cat'"):
        open_pairs(table, config=CONFIG)


def test_the_caption_column_of_a_data_set_can_be_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures(tmp_path, "a.png")
    rows = {"image": [str(tmp_path / "a.png")], "caption": ["one"], "alt": ["two"]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    assert open_pairs(f"hf:{tmp_path / 'saved'}?text=alt", config=CONFIG).texts(0) == ["two"]
    with pytest.raises(DataError, match="no column 'atl'"):
        open_pairs(f"hf:{tmp_path / 'saved'}?text=atl", config=CONFIG)


def test_no_combination_of_objects_is_in_both_parts_of_the_scenes():
    train, test = (CaptionedScenes(split, 16, 3) for split in ("train", "test"))
    assert (len(train), len(test)) == (8000, 1000)
    joined = [
        {tuple(name.strip() for name in _objects(source.texts(i)[0])) for i in range(300)} for source in (train, test)
    ]
    assert not joined[0] & joined[1]
    assert all(held_out(*pair) for pair in joined[1]) and not any(held_out(*pair) for pair in joined[0])
    words = {word for source in (train, test) for i in range(300) for word in source.texts(i)[0].split()}
    assert words <= {word for i in range(300) for word in train.texts(i)[0].split()}, "each word is learned somewhere"
    assert [CLASSES[test.labels[i]] for i in range(50)] == [_objects(test.texts(i)[0])[0] for i in range(50)]


def _objects(caption: str) -> tuple[str, str]:
    for relation in (" left of a ", " right of a ", " above a ", " below a "):
        if relation in caption:
            first, second = caption.split(relation)
            return first.split(" ", 2)[2], second
    raise AssertionError(caption)


def test_each_epoch_draws_one_of_several_captions_and_nothing_is_mirrored(tmp_path):
    pictures(tmp_path, "a.png")
    left = Image.new("RGB", (40, 40), (0, 0, 0))
    left.paste((255, 255, 255), (0, 0, 20, 40))
    left.save(tmp_path / "a.png")
    source = open_pairs(written(tmp_path / "p.csv", "path,caption\na.png,one\na.png,two\n"), config=CONFIG)
    pairs = TokenizedPairs(source, Tokenizer.trained(source.captions(), 600), CONFIG)
    seen = set()
    for seed in range(30):
        made = PairView(CONFIG)(pairs.load(0), np.random.default_rng(seed))
        seen.add(tuple(made["input_ids"].tolist()))
        assert made["views"][0][..., :8].float().mean() > 200 > made["views"][0][..., -8:].float().mean()
    assert len(seen) == 2


def test_a_caption_longer_than_the_context_is_an_unreadable_sample_unless_it_is_cut(tmp_path):
    pictures(tmp_path, "a.png")
    source = open_pairs(
        written(tmp_path / "p.csv", "path,caption\na.png,one two three four five six seven\n"), config=CONFIG
    )
    tokenizer = Tokenizer.trained(source.captions(), 600)
    with pytest.raises(BadSample, match="has 7 tokens, 6 fit"):
        TokenizedPairs(source, tokenizer, CONFIG).load(0)
    cut = CLIPConfig(vocab_size=600, eos_token_id=599, context_length=8, truncate=True)
    assert TokenizedPairs(source, tokenizer, cut).load(0)["input_ids"][0, -1] == 599


def test_the_fingerprint_changes_with_a_caption(tmp_path):
    pictures(tmp_path, "a.png")
    prints = []
    for caption in ("one", "two"):
        row = json.dumps({"path": "a.png", "caption": caption})
        prints.append(open_pairs(written(tmp_path / "p.jsonl", row + "\n"), config=CONFIG).fingerprint())
    assert prints[0] != prints[1]


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 11, 3), dtype=np.uint8)  # n h w c
WORDS = ["a red  patch", "blue", "green", "a red patch", "grey", "white"]


@pytest.mark.parametrize(
    "samples",
    [
        list(zip(PIXELS, WORDS, strict=True)),
        [(x, [word]) for x, word in zip(PIXELS, WORDS, strict=True)],
        [{"image": x, "caption": word} for x, word in zip(PIXELS, WORDS, strict=True)],
        [{"image": Image.fromarray(x), "text": word} for x, word in zip(PIXELS, WORDS, strict=True)],
    ],
    ids=["pair", "captions", "caption", "text"],
)
def test_a_program_gives_pictures_with_captions(samples):
    source = open_pairs(samples, config=CONFIG)
    assert source.texts(0) == ["a red patch"] and list(source.captions())[1:3] == ["blue", "green"]
    assert source.load(2)["image"].shape == (3, 9, 11) and source.labels is None
    other = open_pairs([*samples[:-1], (PIXELS[5], "black")], config=CONFIG)
    assert other.fingerprint() != source.fingerprint()
    with pytest.raises(NoTestSplit):
        open_pairs(samples, config=CONFIG, split="test")


def test_given_pictures_without_text_have_labels_and_a_missing_caption_is_a_bad_sample():
    labelled = open_pairs([(x, i % 2) for i, x in enumerate(PIXELS)], config=CONFIG)
    assert labelled.labels.tolist() == [0, 1] * 3
    with pytest.raises(DataError, match="caption"):
        build(CONFIG).check(labelled)
    both = [{"image": x, "caption": "red", "label": i % 2} for i, x in enumerate(PIXELS)]
    assert open_pairs(both, config=CONFIG).labels.tolist() == [0, 1] * 3
    source = open_pairs([*zip(PIXELS, WORDS[:5], strict=False), (PIXELS[5], " ")], config=CONFIG)
    with pytest.raises(BadSample, match="its caption is empty"):
        source.texts(5)
    assert len(list(source.captions())) == 5
