"""A method that reads text goes through the same loop, where there is no torchvision."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import signal
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_core.config import TrainConfig, check
from ssl_core.errors import DataError, NoTestSplit
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.method import Recipe
from ssl_testing import children, faults
from ssl_testing.contract import Contract
from ssl_testing.state import differing, newest, whole_state
from ssl_testing.trial import Trial
from ssl_train.cli import commands
from ssl_train.cli.main import main
from ssl_train.data.names import digest
from ssl_train.data.split import Trained
from ssl_train.opened import Opened


@dataclass(frozen=True, kw_only=True)
class BigramConfig(TrainConfig):
    vocabulary: int = 16
    window: int = 12
    dim: int = 8
    dropout: float = 0.1
    epochs: float = 2.5
    batch_size: int = 8
    base_lr: float = 1.6

    def __post_init__(self):
        super().__post_init__()
        check(self.vocabulary > 1, "vocabulary", self.vocabulary, "needs two tokens")


class Windows:
    """64 windows of one stream, in which a token is mostly followed by the next one."""

    labels = classes = None

    def __init__(self, vocabulary, window):
        rng, self.window, self.vocabulary = np.random.default_rng(0), window, vocabulary
        steps = np.where(rng.random(64 * window + 1) < 0.8, 1, rng.integers(vocabulary, size=64 * window + 1))
        self.stream = torch.from_numpy(np.cumsum(steps) % vocabulary)

    def __len__(self):
        return 64

    def load(self, index):
        return {"tokens": self.stream[index * self.window : (index + 1) * self.window + 1].clone()}

    def name(self, index):
        return f"window {index}"

    def fingerprint(self):
        return digest(self.stream.numpy())


def open_windows(data, *, config, split="train"):
    return Windows(config.vocabulary, config.window)


@dataclass(frozen=True)
class Corrupted:
    """Inputs in which a tenth of the tokens is drawn anew, and the tokens that follow."""

    config: BigramConfig

    def __call__(self, sample, rng):
        tokens = sample["tokens"]
        drawn = torch.from_numpy(rng.integers(self.config.vocabulary, size=len(tokens) - 1))
        inputs = torch.where(torch.from_numpy(rng.random(len(tokens) - 1) < 0.1), drawn, tokens[:-1])
        return {"input_ids": inputs, "labels": tokens[1:]}


@dataclass(frozen=True)
class Whole:
    """What `encode` reads, under the name by which the core asks for it."""

    config: BigramConfig

    def __call__(self, sample, rng=None):
        return {"views": [sample["tokens"][:-1]]}


class Bigram(nn.Module, Pretrained):
    """The next token from this one alone."""

    config_class = BigramConfig
    layout = f"{__name__}:LAYOUT"
    accumulates = True

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed, self.head = nn.Embedding(config.vocabulary, config.dim), nn.Linear(config.dim, config.vocabulary)
        self.drop = nn.Dropout(config.dropout)

    def preprocessor(self):
        return {}

    def forward(self, batch, progress):
        logits = self.head(self.drop(self.embed(batch["input_ids"])))  # b n v
        return {"loss": F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())}

    def encode(self, tokens):
        return self.embed(tokens).mean(1)


def blank(config):
    return {"tokens": torch.zeros(config.window + 1, dtype=torch.int64)}


LAYOUT = Layout(
    keymap=KeyMap(rows=(("embed.weight", "wte.weight"),)),
    to_theirs=lambda config: {"model_type": "bigram", "vocab_size": config.vocabulary},
    from_theirs=lambda values, preprocessor: BigramConfig(vocabulary=values["vocab_size"]),
    infer=lambda state: BigramConfig(),
)
PRESETS = {"bigram": {"demo": BigramConfig}}
RECIPE = Recipe(
    name="bigram",
    package="ssl_bigram",
    config=f"{__name__}:BigramConfig",
    method=f"{__name__}:Bigram",
    views=f"{__name__}:Corrupted",
    show=f"{__name__}:show",
    blank=f"{__name__}:blank",
    eval_view=f"{__name__}:Whole",
    source=f"{__name__}:open_windows",
)
TRIAL = Trial(RECIPE, BigramConfig(precision="fp32"))


def train(out, kills):
    TRIAL.here(out, *(faults.kill(step) for step in kills))


class TestBigram(Contract):
    recipe = RECIPE
    config = BigramConfig()
    source = f"{__name__}:open_windows"
    noiseless = {"dropout": 0.0}


def without_torchvision(function):
    """What `function(this module, imported anew with the whole core)` returns, where torchvision
    cannot be imported."""

    def inside():
        for name in [name for name in sys.modules if name.split(".")[0] in ("ssl_core", "torchvision")]:
            del sys.modules[name]
        sys.modules["torchvision"] = None
        spec = importlib.util.spec_from_file_location("bigram_anew", __file__)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.Pretrained is not Pretrained
        return function(module)

    return children.run(inside)


def test_it_learns_what_follows_what(tmp_path):
    Trial(RECIPE, BigramConfig(precision="fp32", epochs=15)).here(tmp_path / "run", checkpoint_minutes=60)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 0.9 * math.log(16) and losses[-1] < 0.7 * math.log(16)


def test_it_trains_is_killed_and_goes_on_without_torchvision(tmp_path):
    for run, kills, code in (("whole", [], 0), ("run", [11], -signal.SIGKILL), ("run", [], 0)):
        ended = without_torchvision(lambda bigram, run=run, kills=kills: bigram.train(tmp_path / run, kills))
        assert ended.code == code, ended
    assert differing(whole_state(newest(tmp_path / "run")), whole_state(newest(tmp_path / "whole"))) == []
    assert newest(tmp_path / "run").name == "step-000020"


def test_its_health_is_measured_without_labels(tmp_path):
    TRIAL.here(tmp_path / "run", checkpoint_minutes=60)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["health/rankme"] > 1 and "health/knn" not in last


def test_its_run_folder_gives_it_back(tmp_path):
    trained = TRIAL.here(tmp_path / "run")
    loaded = Bigram.from_pretrained(tmp_path / "run")
    assert differing(loaded.state_dict(), trained.state_dict()) == []
    assert json.loads(Path(tmp_path / "run" / "config.json").read_text())["vocab_size"] == 16


def settle(config, data):
    return dataclasses.replace(config, vocabulary=20)


def measure(method, source):
    return {"tokens": len(source), "summary": [f"{method.config.vocabulary} tokens are known"]}


def test_data_settles_fields_and_figures_without_labels_end_a_run(tmp_path, monkeypatch, capsys):
    recipe = dataclasses.replace(RECIPE, settle=f"{__name__}:settle", measure=f"{__name__}:measure", built_in="counts")
    seen = []
    monkeypatch.setattr(Bigram, "attach", lambda self, source: (seen.append(source), source)[1], raising=False)
    monkeypatch.setattr("ssl_train.cli.commands.figures", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    out = ("--out", "run", "--device", "cpu", "--workers", "0", "--epochs", "0.25", "--precision", "fp32")
    assert main({"bigram": recipe}, ["train", *out]) == 0
    said = capsys.readouterr().out
    assert "20 tokens are known" in said and said.endswith("import Bigram; Bigram.from_pretrained('run')\n")
    assert Bigram.from_pretrained("run").config.vocabulary == 20
    assert [source.vocabulary for source in seen] == [20, 20], "the source is opened for training and for measuring"
    assert json.loads(Path("run/evaluation.json").read_text()) == {
        "data": "counts", "protocol": {}, "rows": [],
        "measured": {
            "tokens": 64, "of": "the data's own test split; 64 samples, all of them TRAINED ON",  # this source has one stream
            "summary": [
                "measured on the data's own test split; 64 samples, all of them TRAINED ON", "20 tokens are known",
            ],
        },
    }  # fmt: skip
    assert main({"bigram": recipe}, ["evaluate", "run", "--device", "cpu"]) == 0, (
        "there are no labels, and none are needed"
    )
    assert "\n20 tokens are known\n\nlook at" in capsys.readouterr().out


def open_named(data, *, config, split):
    if split == "test" and data == "whole":
        raise NoTestSplit("there is one part")
    if data == "torn":
        raise DataError("it cannot be read")
    return types.SimpleNamespace(data=data, split=split)


def report_source(method, source):
    return {"data": source.data, "split": source.split, "summary": []}


@pytest.mark.parametrize(
    ("data", "test", "expected"),
    [
        ("parted", None, ("parted", "test", "the data's own test split")),
        ("whole", None, ("whole", "train", "all data, for there is no test split")),
        ("whole", "held", ("held", "train", "held")),
        ("parted", "held", ("held", "train", "held")),
    ],
)
def test_figures_say_which_data_they_are_of(data, test, expected):
    recipe = dataclasses.replace(RECIPE, source=f"{__name__}:open_named", measure=f"{__name__}:report_source")
    opened = Opened(recipe, None, data, test)
    opened.weights = Trained("")
    figures = commands.measured(opened)["measured"]
    unknown = "unknown whether trained on: the weights do not say what they were trained on"
    assert (figures["data"], figures["split"], figures["of"]) == (*expected[:2], f"{expected[2]}; {unknown}")
    assert figures["summary"] == [f"measured on {figures['of']}"]


def test_test_data_that_cannot_be_read_are_not_replaced_by_training_data():
    recipe = dataclasses.replace(RECIPE, source=f"{__name__}:open_named", measure=f"{__name__}:report_source")
    with pytest.raises(DataError, match="cannot be read"):
        commands.measured(Opened(recipe, None, "torn"))
