"""`train` and `evaluate` in Python: data in memory, resuming, wrong arguments, what is shown."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from ssl_core.config import ConfigError
from ssl_core.errors import DataError, InputError
from ssl_testing.tiny import RECIPES, TinyConfig
from ssl_train import log
from ssl_train.cli.main import main
from ssl_train.run import RunError
from ssl_train.stop import Interrupted
from ssl_train.training import evaluator, trainer

OURS = {"tiny": dataclasses.replace(RECIPES["tiny"], source="ssl_train.data.sources:open_images")}
train, evaluate = trainer(OURS), evaluator(OURS)
QUICK = {"device": "cpu", "workers": 0}
CONFIG = TinyConfig(precision="fp32")


class Mine(Dataset):
    """Two classes of noise, dark and bright; stops the process at a given read of a run's steps."""

    def __init__(self, number: int = 24, seed: int = 0, stop_at: int = 0) -> None:
        drawn = torch.Generator().manual_seed(seed)
        self.pixels = torch.randint(0, 100, (number, 3, 12, 10), dtype=torch.uint8, generator=drawn)
        self.pixels[1::2] += 150
        self.reads, self.steps_reads, self.stop_at = 0, 0, stop_at

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # the loop saves at this signal
            self.steps_reads += 1
            if self.steps_reads == self.stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return self.pixels[index], index % 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, which two loader processes read for."""
    return train(CONFIG, Mine(), tmp_path_factory.mktemp("run") / "mine", device="cpu", workers=2)


def test_a_stopped_run_on_a_dataset_goes_on_to_the_same_weights(run, tmp_path):
    with pytest.raises(Interrupted, match="is saved: the same call goes on"):
        train(CONFIG, Mine(stop_at=10), tmp_path / "run", **QUICK)
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    again = train(CONFIG, Mine(), tmp_path / "run", **QUICK)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    started = json.loads((tmp_path / "run" / "run.json").read_text())
    assert started["data"] == "Mine given in Python" and len(started["data_fingerprint"]) == 16


def test_a_run_from_python_says_what_is_held_out_unless_it_is_to_be_quiet(tmp_path, capsys):
    train(CONFIG, Mine(), tmp_path / "a", held_out=0.0, **QUICK)
    assert "held out: nothing" in capsys.readouterr().out
    with log.quietly():
        train(CONFIG, Mine(), tmp_path / "b", held_out=0.0, **QUICK)
    assert capsys.readouterr().out == ""


def test_without_forked_processes_data_in_memory_are_read_by_this_one_and_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    data = Mine()
    with pytest.warns(UserWarning, match="read without loader processes: workers=2 tries them"):
        train(CONFIG, data, tmp_path / "run", device="cpu", epochs=1.0)
    assert data.reads > 24 + 24, "the samples of the run too were read here"


@pytest.mark.parametrize("data", [Mine(seed=1), Mine(23), None], ids=["pixels", "length", "none"])
def test_other_data_than_the_run_began_with_are_refused(run, data):
    with pytest.raises(RunError, match=r"data_fingerprint(.|\n)*Call train in Python with the same data to go on"):
        train(CONFIG, data, run.folder, **QUICK)


@pytest.mark.parametrize("verb", [["evaluate"], ["embed", "--out", "features.npz"], ["show"]], ids=lambda verb: verb[0])
def test_commands_without_data_say_that_these_have_to_be_given_in_python(run, verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(OURS, [verb[0], str(run.folder), *verb[1:]]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "(Mine given in Python): give them in Python, as in ssl_tiny.evaluate(" in said and "--data" in said


def test_a_run_is_evaluated_on_its_own_data_by_itself_and_by_the_name_of_its_folder(run, capsys):
    found = evaluate(run, protocols=("knn",))
    assert found["data"] == "Mine given in Python" and found["rows"][0]["knn"] == 1.0
    assert "never trained on" in found["protocol"]["split"] and "top-1 in %" in capsys.readouterr().out
    other = evaluate(str(run.folder), Mine(seed=5), test=Mine(10, seed=6), protocols=("knn",), device="cpu")
    assert other["protocol"]["test"]["n"] == 10 and "10 samples of other data" in other["protocol"]["split"]
    assert json.loads((run.folder / "evaluation.json").read_text()) == other


def test_a_run_shows_a_few_lines_in_a_terminal_and_its_report_in_a_notebook(run):
    lines = str(run).splitlines()
    assert lines[0] == f"run in {run.folder}" and lines[1].startswith("steps") and lines[2].startswith("loss")
    assert lines[-2:] == [
        "next           ssl_tiny.evaluate(run)",
        f"               Tiny.from_pretrained({str(run.folder)!r})",
    ]
    assert len(lines) < 20 and max(map(len, lines[:-1])) < 120
    assert run._repr_html_().startswith("<iframe srcdoc=") and "&lt;html" in run._repr_html_()
    (run.folder / "report.html").unlink(missing_ok=True)
    page = run.report()
    assert page == run.folder / "report.html" and "ssl_testing.evaluate(" in page.read_text()
    assert (run.folder / "figures" / "first.png").exists() and (run.folder / "README.md").exists()


def test_settings_are_chosen_for_a_dataset_as_for_a_folder_and_keywords_are_flags(tmp_path, capsys):
    run = train("tiny", Mine(40), tmp_path / "run", max_steps=2, batch_size=5, **QUICK)
    assert run.model.config.batch_size == 5 and run.model.config.image_size == 32
    assert "chosen for these data" in capsys.readouterr().out
    changed = train(CONFIG, Mine(), tmp_path / "changed", epochs=0.4, crop_pct=0.5, **QUICK)
    assert changed.model.config == dataclasses.replace(CONFIG, epochs=0.4, crop_pct=0.5)


def test_without_a_config_the_architecture_is_that_of_the_weights_a_run_starts_from(run, tmp_path):
    wide = train(TinyConfig(dim=24, precision="fp32"), Mine(), tmp_path / "wide", epochs=0.4, **QUICK)
    again = train("tiny", Mine(40), tmp_path / "again", init=wide.folder, max_steps=2, **QUICK)
    assert again.model.config.dim == 24


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"config": "tinny"}, "no method 'tinny'; there are tiny. Did you mean tiny?"),
        ({"config": os.curdir}, r"there are tiny\. Data are the second argument"),
        ({"config": Mine()}, r"Mine is the config of no method .* Data are the second argument: train\(data=…\)"),
        ({"batch": 64}, "TinyConfig has no field 'batch'; did you mean 'batch_size'?"),
        ({"lr": 0.1}, "no field 'lr'; did you mean 'base_lr' or 'min_lr'?"),
        ({"worker": 2}, "no field 'worker'"),
        ({"epochs": "ten"}, "epochs = 'ten': expected float"),
        ({"workers": -1}, "workers = -1: must be at least 0"),
        ({"data": 3}, "data is of type int: give a Dataset"),
        ({"data": "nowhere"}, "there is no 'nowhere'"),
        ({"config": CONFIG, "minutes": 1}, "a config has its epochs"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_a_mistake_in_an_argument_is_named(arguments, said, tmp_path):
    with pytest.raises(InputError, match=said):
        train(out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_evaluate_names_what_it_takes(run):
    with pytest.raises(InputError, match="takes what train returned, or the name .*, not a Tiny"):
        evaluate(run.model, Mine())
    with pytest.raises(ConfigError, match="Evaluate has no field 'protocol'; did you mean 'protocols'?"):
        evaluate(run, protocol=("knn",))
    with pytest.raises(DataError, match=r"list given in Python has no labels.*\(picture, label\) in Python"):
        evaluate(run, list(Mine().pixels))
