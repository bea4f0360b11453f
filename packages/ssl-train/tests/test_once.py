"""A command opens its data once and builds its network once: what it has, it hands on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from ssl_core.hub import layout
from ssl_testing.tiny import RECIPES, Tiny, write_pictures
from ssl_train.cli.main import main
from ssl_train.data import sources

RECIPE = RECIPES["tiny"]
SHORT = ("--epochs", "0.125", "--warmup-epochs", "0", "--precision", "fp32", "--device", "cpu", "--workers", "0")
MEASURING = dataclasses.replace(RECIPE, measure=f"{__name__}:measure")


def measure(method, source):
    return {"summary": [f"{len(source)} samples"]}


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of classes, in parts or as a whole."""
    config = RECIPE.preset("demo")
    for part in ("train", "test") if request.param == "in parts" else ("",):
        write_pictures(tmp_path / "data" / part, config, 40 if part == "test" else 64)
    return tmp_path / "data"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a folder is listed, a split is opened, and a network is built that holds weights or
    none."""
    counted: Counter[str] = Counter()

    def counting(owner, name, called):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            result = function(*args, **kwargs)
            counted[called(*args)] += 1
            return result

        monkeypatch.setattr(owner, name, wrapper)

    counting(sources, "walk", lambda *_: "listed")
    counting(sources, "open_source", lambda data: "opened")
    counting(Tiny, "__init__", lambda self, config: "sketched" if self.centre.is_meta else "built")
    return counted


@pytest.mark.parametrize("recipe", [RECIPE, MEASURING], ids=["plain", "measuring"])
@pytest.mark.parametrize("data", ["whole", "in parts"], indirect=True)
def test_train_and_evaluate_list_and_open_and_build_once(recipe, data, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = 2 if (data / "train").is_dir() else 1

    assert main({"tiny": recipe}, ["train", "--data", str(data), "--out", "run", *SHORT]) == 0
    # without parts no test split is opened: that there is none is known without a listing
    assert (calls["listed"], calls["opened"]) == (parts, 1)
    # a sketch, which holds no weights, says which batch fits into memory
    assert (calls["built"], calls["sketched"]) == (1, 1)

    calls.clear()
    evaluate = ["evaluate", "run", "--data", str(data), "--protocols", "knn", "--device", "cpu"]
    assert main({"tiny": recipe}, evaluate) == 0
    assert (calls["listed"], calls["opened"], calls["built"]) == (parts, 1, 2), "the network and a random one beside it"


@pytest.mark.parametrize("data", ["in parts"], indirect=True)
def test_test_data_that_lie_elsewhere_are_opened_once_too(data, calls, tmp_path, monkeypatch):
    Tiny(RECIPE.preset("demo")).save_pretrained(tmp_path / "weights")
    calls.clear()
    named = ["--data", str(data / "train"), "--test", str(data / "test")]
    arguments = ["evaluate", str(tmp_path / "weights"), *named, "--protocols", "knn", "--device", "cpu"]
    assert main({"tiny": MEASURING}, arguments) == 0
    assert (calls["listed"], calls["opened"], calls["built"]) == (2, 2, 2)


@pytest.mark.parametrize("data", ["whole"], indirect=True)
def test_a_run_that_starts_from_weights_reads_and_builds_them_once(data, calls, tmp_path, monkeypatch):
    Tiny(RECIPE.preset("demo")).save_pretrained(tmp_path / "weights")
    calls.clear()
    read: Counter[str] = Counter()

    def counted(name, function):
        def wrapper(*args):
            read[name] += 1
            return function(*args)

        return wrapper

    for name in ("load_weights", "verify_sums"):
        monkeypatch.setattr(layout, name, counted(name, getattr(layout, name)))
    monkeypatch.chdir(tmp_path)
    line = ["train", "--data", str(data), "--out", "run", "--init", str(tmp_path / "weights"), *SHORT]
    assert main({"tiny": RECIPE}, line) == 0
    assert calls["built"] == 1
    assert read["load_weights"] == 2, "model.safetensors and heads.safetensors"
    assert read["verify_sums"] == 3, "the weights once; the small config.json at both readings"
