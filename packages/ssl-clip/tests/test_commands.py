"""The commands of ssl-clip: what they print and write, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from ssl_clip.config import RECIPES
from ssl_clip.verbs import VERBS
from ssl_train.cli.main import main

SHORT = ("--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2")
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


@pytest.fixture
def run(tmp_path, monkeypatch, model) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, colour in COLOURS.items():
        (tmp_path / "colours" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 20), colour).save(tmp_path / "colours" / name / f"{i}.png")
    return model().save_pretrained(tmp_path / "runs" / "clip")


def typed(*arguments: str) -> int:
    try:
        return main(RECIPES, list(arguments), verbs=VERBS)
    except SystemExit as error:  # the parser of flags ends the process itself
        assert isinstance(error.code, int)
        return error.code


def test_classify_prints_a_table_and_measures_a_folder(run, capsys):
    images = ("colours/red/0.png", "colours/blue/0.png")
    assert typed("classify", *images, "--labels", "red", "blue", "--device", "cpu") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["red", "blue"] and len(table) == 3 and table[1].count("%") == 2
    Path("templates.txt").write_text("a {}\na photo of a {}\n")
    assert typed("classify", "--data", "colours", "--templates", "templates.txt", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "top1" in shown and "mean per class" in shown and "2 templates" in shown
    with Image.open("confusion.png") as picture:
        assert picture.width > 100


def test_classify_measures_the_test_split_and_says_so(run, capsys):
    for split, number in (("train", 1), ("test", 2)):
        for colour in ("red", "blue"):
            folder = Path("parted") / split / colour
            folder.mkdir(parents=True)
            for i in range(number):
                shutil.copy(f"colours/{colour}/{i}.png", folder)
    assert typed("classify", "--data", "parted", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "measured on the data's own test split; " in shown and "4 images" in shown
    assert typed("classify", "--data", "colours", "--device", "cpu") == 0
    assert "measured on all data, for there is no test split; " in capsys.readouterr().out


def test_index_and_search_find_and_write_a_page(run, capsys):
    for _ in range(2):
        assert typed("index", "colours", "--out", "my.index", "--device", "cpu") == 0
    assert "0 new, 0 changed, 0 gone, 0 unreadable; 9 images" in capsys.readouterr().out
    assert typed("search", "my.index", "a <red> picture", "--top-k", "3", "--device", "cpu") == 0
    assert capsys.readouterr().out.count(".png") == 3
    page = Path("search.html").read_text()
    assert page.count("<img") == 3 and "a &lt;red&gt; picture" in page and "<red>" not in page
    assert typed("search", "my.index", "--image", "colours/green/1.png", "--device", "cpu") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "green" in first and float(first.split()[0]) > 0.98


def test_a_limit_on_pixels_holds_in_every_command(run, capsys):
    Image.new("RGB", (40, 40)).save("colours/red/large.png")
    limit = ("--max-pixels", "1000", "--device", "cpu")
    assert typed("classify", "colours/red/large.png", "--labels", "red", "blue", *limit) == 2
    assert "raise the limit with --max-pixels" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="large.png: 40 x 40 pixels"):
        assert typed("classify", "--data", "colours", *limit) == 0
    assert "9 images" in capsys.readouterr().out
    assert typed("index", "colours", "--out", "my.index", *limit) == 0
    assert "1 unreadable; 9 images" in capsys.readouterr().out
    assert typed("search", "my.index", "--image", "colours/red/large.png", *limit) == 2
    assert "raise the limit with --max-pixels" in capsys.readouterr().err
    assert typed("index", "colours", "--out", "my.index", "--max-pixels", "2000", "--device", "cpu") == 0
    assert "0 unreadable; 10 images" in capsys.readouterr().out, "what was too large is tried again"
    assert typed("search", "my.index", "a", "--max-pixels", "0") == 2
    assert "max_pixels = 0: must be at least 1" in capsys.readouterr().err


def test_the_results_of_commands_are_json_and_what_comes_next_can_be_typed(run, capsys):
    Path("colours").rename("my colours (1)")
    image = "my colours (1)/red/0.png"
    results = []
    for line in (
        ("classify", image, "--labels", "red", "blue"),
        ("classify", "--data", "my colours (1)", "--out", "c.png"),
        ("index", "my colours (1)", "--out", "my index"),
    ):
        assert typed(*line, "--device", "cpu", "--json", "--quiet") == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["images"][image].keys() == {"red", "blue"} and 0 <= results[1]["top1"] <= 1
    assert results[2]["added"] == 9
    assert typed(*shlex.split(results[2]["next"][0])[1:], "--device", "cpu", "--json", "--quiet") == 0
    assert len(json.loads(capsys.readouterr().out)["found"]) == 9


def test_classify_prints_its_numbers_without_matplotlib(run, capsys, monkeypatch):
    monkeypatch.setattr("ssl_clip.figures.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r'no picture of the confusion matrix: .* pip install "ssl-clip\[viz\]"'):
        assert typed("classify", "--data", "colours", "--device", "cpu") == 0
    assert "top1" in capsys.readouterr().out and not Path("confusion.png").exists()


def test_map_prints_the_gap(run, capsys):
    pytest.importorskip("matplotlib")
    command = "map --data colours --texts red blue --number 5 --method pca --device cpu --centre"
    assert typed(*command.split()) == 0
    assert "modality gap" in capsys.readouterr().out and Path("map.png").is_file()


def test_map_leaves_out_what_is_unreadable_and_needs_scikit_learn_for_tsne_alone(run, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [f"colours/{name}/{i}.png,a {name} picture" for name in COLOURS for i in range(3)]
    Path("pairs.csv").write_text("\n".join(["path,caption", *rows]))
    Path("colours/red/0.png").write_text("no picture")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert typed("map", "--data", "pairs.csv", "--method", "pca", "--device", "cpu") == 0
    assert "8 images and 3 texts" in capsys.readouterr().out
    assert typed("map", "--data", "pairs.csv", "--device", "cpu") == 2
    assert 'pictures need sklearn: pip install "ssl-clip[viz]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify",), "give images to classify, or --data"),
        (("classify", "colours/red/0.png", "--labels", "red"), "two or more"),
        (("classify", "nowhere.png", "--labels", "red", "blue"), "nowhere.png cannot be read: no such file"),
        (("classify", "--data", "colours/red"), "has no classes"),
        (("classify", "--data", "colours", "--labels", "a", "b"), "2 labels for 3 classes"),
        (("index", "nowhere"), "nowhere is no folder"),
        (("search", "nowhere", "red"), "nowhere is no index"),
        (("search", "my.index"), "give a text"),
        (("search", "my.index", "red " * 30), "tokens, 10 fit"),
        (("search", "my.index", " "), "is empty"),
        (("search", "my.index", "red", "--top-k", "0"), "ask for at least one image"),
        (("search", "my.index", "--image", "nowhere.png"), "nowhere.png cannot be read"),
        (("map", "--data", "colours"), "has no captions: name the texts"),
        (("train", "--data", "colours", *SHORT), "have no captions"),
        (("train", "--epochs", "1", "--warmup-epochs", "2"), "must be shorter than the run"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(arguments, message, run, capsys):
    assert typed("index", "colours", "--out", "my.index", "--device", "cpu") == 0
    assert typed(*arguments, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_command_trains_on_ones_own_pairs_and_shows_what_it_found(
    tmp_path, monkeypatch, capsys, write_pairs, trainable
):
    data = write_pairs(tmp_path / "data", each=5, colours=1)
    monkeypatch.chdir(tmp_path)
    fields = {**dataclasses.asdict(trainable), "batch_size": 10}
    Path("tiny.json").write_text(json.dumps(fields))
    options = "--config tiny.json --out run --device cpu --workers 0 --accumulate 2"
    assert typed("train", "--data", str(data), *options.split()) == 0
    shown = capsys.readouterr().out
    assert "image to text: R@1" in shown and "20 samples" in shown
    assert "a red patch at the top left" in json.loads(Path("run/figures/captions.json").read_text())["search.png"]
    assert json.loads(Path("run/evaluation.json").read_text())["measured"]["retrieval"]
