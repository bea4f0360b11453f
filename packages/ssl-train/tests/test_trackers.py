"""Trackers: each gets the run's scalars, goes on after a resume, and never ends a run."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types

import pytest

from ssl_core.config import ConfigError
from ssl_train.log import Log
from ssl_train.options import RunOptions
from ssl_train.trackers import GROUP, TRACKERS, tracker

RUN = {"run_id": "abc123", "method": "tiny", "config": {"epochs": 2.0, "mean": [0.5]}}
STEPS = {10: {"loss": 2.0}, 20: {"loss": 1.5}}


def logged(folder, track, steps=STEPS):
    """Log `steps` of a run as the loop does; returns the lines of metrics.jsonl."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(RUN), "utf-8")
    with Log(folder, 20, 0, RunOptions(track=(track,))) as log:
        for step, scalars in steps.items():
            log.write(step, scalars)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, project):
        self.project, self.told = project, []

    def start(self, folder, run):
        self.told.append(("start", folder, run))

    def log(self, step, scalars):
        self.told.append((step, scalars))

    def finish(self):
        self.told.append("finish")


@pytest.fixture
def brought(monkeypatch):
    """What is made by the tracker `kept` of an installed package, and the fault it can be given."""
    made = []

    def make(project):
        made.append(Kept(project))
        return made[-1]

    point = types.SimpleNamespace(name="kept", value="package:make", load=lambda: make)
    monkeypatch.setattr("ssl_train.trackers.entry_points", lambda group: [point] if group == GROUP else [])
    return made


def test_a_package_brings_a_tracker_by_an_entry_point(brought, tmp_path):
    logged(tmp_path / "run", "kept:mine")
    [kept] = brought
    assert kept.project == "mine"
    assert kept.told == [("start", tmp_path / "run", RUN), *STEPS.items(), "finish"]


def test_an_entry_point_is_read_from_an_installed_package(tmp_path, monkeypatch):
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nother = other_tracker:Other\n")
    (tmp_path / "other_tracker.py").write_text(
        "class Other:\n    def __init__(self, project):\n        self.p = project\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [point.name for point in importlib.metadata.entry_points(group=GROUP)] == ["other"]
    assert vars(tracker("other:x")) == {"p": "x"}
    (tmp_path / "other_tracker.py").write_text("import nothing_of_this_name\n")
    monkeypatch.delitem(sys.modules, "other_tracker")
    with pytest.raises(ConfigError, match="other_tracker:Other cannot be imported: .*nothing_of_this_name"):
        tracker("other")


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_the_record_is_whole(moment, brought, tmp_path, monkeypatch):
    def broken(self, *arguments):
        raise ConnectionError("no network")

    monkeypatch.setattr(Kept, moment, broken)
    with pytest.warns(UserWarning, match="kept.*no network") as warned:
        lines = logged(tmp_path / "run", "kept")
    assert len(warned) == 1 and [line["step"] for line in lines] == [*STEPS]


def test_an_unknown_tracker_is_an_error_that_lists_what_there_is(brought):
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'; there are tensorboard, .*trackio, kept"):
        tracker("tensorbord")


@pytest.mark.parametrize(
    ("name", "module"),
    {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}.items(),
)
def test_a_missing_library_is_an_error_that_names_the_pip_line(name, module, monkeypatch):
    assert {"tensorboard", "wandb", "mlflow", "trackio"} == TRACKERS.keys()
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'ssl-train\[{name}\]'"):
        tracker(name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_the_scalars_of_both_parts_of_a_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(tmp_path / "run", "tensorboard")
    logged(tmp_path / "run", "tensorboard", {30: {"loss": 1.0}})
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {event.step: event.value for event in read.Scalars("loss")} == {10: 2.0, 20: 1.5, 30: 1.0}
    with pytest.raises(ConfigError, match="no projects"):
        tracker("tensorboard:mine")


def test_wandb_and_trackio_go_on_in_the_run_of_the_same_id(tmp_path, monkeypatch):
    told = []
    module = types.SimpleNamespace(
        init=lambda **where: told.append(where) or module,
        log=lambda scalars, step: told.append((step, scalars)),
        finish=lambda: told.append("finish"),
    )
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, module)
    for name, own in {
        "wandb": {"id": "abc123", "name": "run", "dir": str(tmp_path / "run")},
        "trackio": {"name": "run-abc123"},
    }.items():
        told.clear()
        for _ in range(2):
            logged(tmp_path / "run", f"{name}:mine")
        once = [{"project": "mine", "resume": "allow", "config": RUN["config"], **own}, *STEPS.items(), "finish"]
        assert told == once * 2


def test_mlflow_goes_on_in_the_run_of_the_same_tag(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logged(tmp_path / "run", "mlflow:mine")
    logged(tmp_path / "run", "mlflow:mine", {30: {"loss": 1.0}})
    client = mlflow.MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}
    assert history == {10: 2.0, 20: 1.5, 30: 1.0}
    assert run.info.status == "FINISHED" and run.data.params["epochs"] == "2.0"
