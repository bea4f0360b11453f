"""The weights of a stopped run, and of an earlier step, are used like those of a finished one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from ssl_core.hub.checkpoint import checkpoint_of, newest_first
from ssl_core.hub.weights_file import WeightsError
from ssl_testing import faults
from ssl_testing.tiny import LAYOUT, RECIPES, Tiny, write_pictures
from ssl_testing.trial import Trial
from ssl_train.cli.main import main
from ssl_train.stop import Interrupted

TRIAL = Trial(RECIPES["tiny"], RECIPES["tiny"].preset("demo"))
VERBS = {
    "evaluate": ("--protocols", "knn", "--out", "elsewhere"),
    "embed": ("--out", "features.npz"),
    "show": ("--out", "figures"),
    "info": (),
    "push": ("me/model", "--dry-run"),
    **({"export": ("exported", "--to", next(iter(LAYOUT.exports)))} if LAYOUT.exports else {}),
}


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after step 8 of 20."""
    with pytest.raises(Interrupted):
        TRIAL.here(tmp_path / "run", faults.kill(7, signal.SIGTERM), checkpoint_minutes=60)
    return tmp_path / "run"


def test_the_newest_checkpoint_stands_for_a_run_without_weights(stopped):
    method = Tiny.from_pretrained(stopped)
    raw = newest_first(stopped)[0]
    assert raw.name == "step-000008" and checkpoint_of(stopped) == raw
    stored = load_file(raw / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in method.state_dict().items())
    assert dataclasses.replace(method.config, precision="auto") == TRIAL.config and not method.training


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_a_stopped_run_and_says_its_step(verb, stopped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in stopped.iterdir()}
    more = () if verb in ("export", "push") else ("--device", "cpu")
    if verb == "evaluate":
        more += ("--data", str(write_pictures(tmp_path / "pictures", TRIAL.config)))
    assert main(RECIPES, [verb, str(stopped), *VERBS[verb], *more]) == 0
    assert f"{stopped}: weights of step 8, from a checkpoint" in capsys.readouterr().err
    assert {path.name for path in stopped.iterdir()} == before


def test_a_run_starts_from_a_stopped_one(stopped, tmp_path, capsys):
    line = ["train", "--init", str(stopped), "--out", str(tmp_path / "next"), "--epochs", "0.125", "--warmup-epochs"]
    assert main(RECIPES, [*line, "0", "--device", "cpu", "--workers", "0"]) == 0
    assert json.loads((tmp_path / "next/run.json").read_text())["init"] == str(stopped)


def test_kept_steps_are_read_by_name_and_survive_the_rotation(tmp_path):
    method = TRIAL.here(tmp_path / "run", checkpoint_minutes=60, keep_every=6)
    assert [int(path.name[5:]) for path in newest_first(tmp_path / "run")] == [20, 18, 12, 6]
    assert checkpoint_of(tmp_path / "run") is None, "its weights are published"
    early, late = (Tiny.from_pretrained(f"{tmp_path}/run@{step}") for step in (6, 20))
    same = [torch.equal(a, b) for a, b in zip(early.state_dict().values(), late.state_dict().values(), strict=True)]
    assert not all(same)
    last = method.state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in late.state_dict().items())
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; it has 20, 18, 12, 6"):
        Tiny.from_pretrained(f"{tmp_path}/run@7")


def test_a_damaged_checkpoint_is_passed_over_and_none_is_an_error(tmp_path):
    with pytest.raises(Interrupted):
        TRIAL.here(tmp_path / "run", faults.kill(7, signal.SIGTERM), checkpoint_minutes=0)
    newest, older = newest_first(tmp_path / "run")
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    assert checkpoint_of(tmp_path / "run") == older
    with pytest.raises(WeightsError, match="differs from what was written"):
        Tiny.from_pretrained(f"{tmp_path}/run@8")
    os.truncate(older / "state.json", 9)
    with pytest.raises(WeightsError, match="no checkpoint of .* can be read"):
        Tiny.from_pretrained(tmp_path / "run")


def test_a_changed_word_of_the_manifest_is_damage(stopped):
    manifest = newest_first(stopped)[0] / "state.json"
    manifest.write_text(manifest.read_text().replace('"dim": 16', '"dim": 61'))
    with pytest.raises(WeightsError, match="differs from what was written"):
        Tiny.from_pretrained(stopped)


def test_figures_of_a_step_lie_beside_the_runs_own_and_the_report_has_both(tmp_path, capsys):
    run, data = tmp_path / "run", str(write_pictures(tmp_path / "pictures", TRIAL.config))
    TRIAL.here(run, checkpoint_minutes=60, keep_every=6)
    line = ["--data", data, "--protocols", "knn", "--device", "cpu"]
    assert main(RECIPES, ["evaluate", str(run), *line]) == 0
    own = (run / "evaluation.json").read_bytes()
    for step in (18, 6):
        assert main(RECIPES, ["evaluate", f"{run}@{step}", *line]) == 0
    assert (run / "evaluation.json").read_bytes() == own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run"], "no folder is called run@6"
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == ["step-000006", "step-000018"]
    page = (run / "report.html").read_text()
    names = [f"<tr><th>{name} on pictures</th>" for name in ("step 6", "step 18", "the run")]
    places = [page.index(name) for name in names]
    assert places == sorted(places)


def test_a_step_knows_what_its_run_was_trained_on(tmp_path, capsys):
    data = write_pictures(tmp_path / "pictures", TRIAL.config)
    dataclasses.replace(TRIAL, data=str(data)).here(tmp_path / "run", checkpoint_minutes=60, keep_every=10)
    line = ["evaluate", f"{tmp_path}/run@10", "--data", str(data), "--protocols", "knn", "--device", "cpu"]
    assert main(RECIPES, line) == 0
    assert "what the run held out; 15 samples, never trained on" in capsys.readouterr().out
