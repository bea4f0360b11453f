"""Runs of other versions: resumed with a warning, or refused with what to install."""

from __future__ import annotations

import json
import signal
import warnings

import pytest
import torch
from torch import nn

from ssl_core.config import Format
from ssl_core.hub.weights_file import sum_of
from ssl_testing import faults
from ssl_testing.tiny import RECIPES, TinyConfig
from ssl_testing.trial import Trial
from ssl_train.checkpoint import CheckpointError, Checkpoints
from ssl_train.run import RunError
from ssl_train.stop import Interrupted

TRIAL = Trial(RECIPES["tiny"], RECIPES["tiny"].preset("demo"))


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after step 8 of 20."""
    with pytest.raises(Interrupted):
        TRIAL.here(tmp_path / "run", faults.kill(7, signal.SIGTERM), checkpoint_minutes=60)
    return tmp_path / "run"


def edit(file, change):
    """Let `change` alter a JSON file, and renew the sum in it if it has one."""
    values = json.loads(file.read_text())
    change(values)
    if values.pop("sha256", None):
        values["sha256"] = sum_of(values)
    file.write_text(json.dumps(values))


def test_a_run_says_the_versions_that_began_it(stopped):
    record = json.loads((stopped / "run.json").read_text())
    assert record["versions"].keys() == {"torch", "ssl-core", "ssl-train", "ssl-testing"}
    assert record["written_by"]["ssl-testing"]["format"] == 1
    [state] = stopped.glob("checkpoints/*/state.json")
    assert json.loads(state.read_text())["written_by"].keys() == {"ssl-core", "ssl-testing", "ssl-train"}


def test_a_run_of_an_earlier_format_goes_on_with_a_warning(stopped, monkeypatch):
    def earlier(record):
        del record["config"]["queue"]
        record["config"]["width"] = record["config"].pop("dim")
        record["versions"]["ssl-testing"] = "0.9.0"

    edit(stopped / "run.json", earlier)
    table = {2: Format(added={"queue": 32, "dim": 16}, renamed={"width": "dim"})}
    monkeypatch.setattr(TinyConfig, "FORMATS", table, raising=False)
    with pytest.warns(UserWarning, match=r"ssl-testing: '0\.9\.0' → .* will not end with the same bits"):
        TRIAL.here(stopped)
    assert (stopped / "model.safetensors").is_file()
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 20 and steps == sorted(set(steps))


def test_the_same_versions_go_on_without_a_word(stopped):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRIAL.here(stopped)


def test_a_run_of_a_later_format_is_refused_with_what_to_install(stopped):
    later = {"version": "1.2.0", "format": 3, "readable_from": 3}
    edit(stopped / "run.json", lambda record: record["written_by"]["ssl-testing"].update(later))
    sentence = r"written by ssl-testing 1\.2\.0 \(format 3\): pip install 'ssl-testing>=1\.2\.0'"
    with pytest.raises(RunError, match=rf"run\.json cannot be read by the versions installed here: {sentence}"):
        TRIAL.here(stopped)


def test_a_checkpoint_of_a_later_engine_is_no_damaged_one(stopped):
    later = {"version": "1.4.0", "format": 2, "readable_from": 2}
    [state] = stopped.glob("checkpoints/*/state.json")
    edit(state, lambda values: values["written_by"]["ssl-train"].update(later))
    sentence = r"written by ssl-train 1\.4\.0 \(format 2\): pip install 'ssl-train>=1\.4\.0'"
    with pytest.raises(CheckpointError, match=rf"step-000008 was {sentence}$"):
        TRIAL.here(stopped)
    assert state.is_file()


def test_a_checkpoint_of_a_later_method_that_does_not_fit_says_what_to_install(tmp_path, monkeypatch):
    def network(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        method = nn.Linear(width, 2)
        method.config = TinyConfig()
        return method, torch.optim.SGD([{"params": list(method.parameters()), "param_names": ["weight", "bias"]}])

    with monkeypatch.context() as newer:
        newer.setattr(TinyConfig, "FORMATS", {2: Format()}, raising=False)
        Checkpoints(tmp_path, "a").save(1, *network(3))
    with pytest.raises(
        CheckpointError, match=r"(?s)does not fit Linear .*; written by ssl-testing .* \(format 2\): pip"
    ):
        Checkpoints(tmp_path, "a").restore(*network(4))
