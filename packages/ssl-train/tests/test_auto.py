"""Settings that are chosen by a look at the data and the machine, and presets that are fitted."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ssl_core.config import ConfigError, from_dict
from ssl_core.errors import DataError
from ssl_testing.strangers import Stranger, write_strangers
from ssl_testing.tiny import RECIPES, Pictures, TinyConfig, write_pictures
from ssl_train import auto
from ssl_train.asked import Asked
from ssl_train.auto import batch_for, look_at, network_for, settled, side_for
from ssl_train.cli.main import main
from ssl_train.options import RunOptions
from ssl_train.run import train

RECIPE = RECIPES["tiny"]
CPU = torch.device("cpu")
QUICK = RunOptions(device="cpu", workers=0)


@pytest.fixture
def pace(monkeypatch):
    """Seconds of a step, which the test says instead of the clock; None if the clock was not
    asked."""
    told = {"seconds": 0.01, "asked": 0}

    def answer(*_):
        told["asked"] += 1
        return told["seconds"]

    monkeypatch.setattr(auto, "pace", answer)
    return told


def choose(asked: Asked, number: int = 64, size: int = 40, recipe=RECIPE):
    return settled(recipe, asked, Pictures(number, size=(size, size + 9)), None, CPU)


@pytest.mark.parametrize(
    ("samples", "batch"),
    [(1, 1), (3, 2), (7, 4), (12, 8), (63, 8), (64, 8), (100, 8), (480, 32), (5000, 512), (1 << 20, 1 << 17)],
)
def test_a_batch_is_a_power_of_two_that_leaves_eight_steps_an_epoch_or_holds_eight(samples, batch):
    assert batch_for(samples) == batch


@pytest.mark.parametrize(
    ("shorter", "on_cpu", "side"),
    [(16, True, 32), (64, True, 64), (95, True, 64), (500, True, 96), (159, False, 128), (3000, False, 224)],
)
def test_the_image_size_is_the_largest_that_the_pictures_fill(shorter, on_cpu, side):
    assert side_for(shorter, on_cpu)[0] == side


def test_the_network_grows_with_the_data_except_on_a_cpu():
    sizes = (100, 49_999, 50_000, 999_999, 1_000_000)
    assert [network_for(n, False)[0] for n in sizes] == ["tiny", "tiny", "small", "small", "base"]
    assert {network_for(n, True)[0] for n in sizes} == {"tiny"}


def test_a_look_leaves_out_what_cannot_be_read():
    source = Pictures(50, size=(30, 70))
    source.bad = set(range(0, 50, 2))
    assert look_at(source) == auto.Look(50, 30)
    source.bad = set(range(50))
    with pytest.raises(DataError, match="none of 24 samples that were looked at is readable. .*0.*: "):
        look_at(source)


def test_every_choice_has_its_value_its_reason_and_its_flag(pace):
    config, choices = choose(Asked(), number=480)
    rows = {row.name: row for row in choices}
    assert (config.image_size, config.batch_size, config.precision) == (32, 32, "fp32")
    assert config.lr == pytest.approx(TinyConfig().base_lr * (32 / 256) ** 0.5, rel=0.05)
    assert config.epochs * 15 == pytest.approx(1500), "the recipe's 100 epochs, fewer than 2,000 steps"
    assert rows.keys() == {"image_size", "precision", "batch_size", "base_lr", "epochs"}
    shown = auto.table(choices)
    for row in choices:
        assert row.why and row.flag == "--" + row.name.replace("_", "-")
        assert row.why in shown and row.flag in shown


def test_what_was_typed_stays_and_has_no_row(pace):
    typed = {"image_size": 40, "batch_size": 16, "epochs": 3.0, "warmup_epochs": 1.0, "base_lr": 0.5, "dim": 24}
    config, choices = choose(Asked(typed=typed))
    assert {name: getattr(config, name) for name in typed} == typed
    assert {row.name for row in choices} == {"precision"}
    assert pace["asked"] == 0, "epochs that were typed are not cut"


def test_a_typed_batch_that_the_data_cannot_fill_is_refused_with_the_nearest_that_it_can(pace):
    for asked in (Asked(typed={"batch_size": 65}), Asked(TinyConfig(), {"batch_size": 65})):
        with pytest.raises(ConfigError, match="64 samples, fewer than one batch of 65: use --batch-size 32"):
            choose(asked)


def test_minutes_cut_the_run_by_the_pace_that_was_measured(pace):
    pace["seconds"] = 0.05
    config, choices = choose(Asked(minutes=2), number=480)
    assert config.epochs * 15 == pytest.approx(1500), "2,400 steps would fit"
    pace["seconds"] = 0.1
    config, choices = choose(Asked(minutes=2), number=480)
    assert config.epochs * 15 == pytest.approx(1200)
    assert {row.name: row.why for row in choices}["epochs"] == "2 minutes at 0.1 s a step"


def test_a_short_time_has_many_small_steps(pace):
    pace["seconds"] = 0.2  # a step of 64, the most for this method
    config, choices = choose(Asked(minutes=2), number=5000)
    assert config.batch_size == 32, "64 would leave 600 steps"
    assert round(config.epochs * (5000 // 32)) == 1200
    assert "1,000 steps" in {row.name: row.why for row in choices}["batch_size"]


def test_steps_cut_any_run_and_the_warm_up_with_it(pace):
    preset = TinyConfig(epochs=100, warmup_epochs=10)
    for asked in (Asked(max_steps=3), Asked(preset, max_steps=3)):
        config, _ = choose(asked)
        assert round(config.epochs * (64 // config.batch_size)) == 3
        assert config.warmup_epochs <= 0.1 * config.epochs


def test_a_preset_runs_as_it_is_where_it_can(pace):
    preset = TinyConfig(epochs=4, warmup_epochs=2, batch_size=16)
    assert choose(Asked(preset)) == (preset, []) and pace["asked"] == 0


def test_a_preset_is_fitted_to_the_data_in_one_line_for_each_change(pace):
    config, choices = choose(Asked(TinyConfig(epochs=100, warmup_epochs=40, batch_size=4096), {"epochs": 1.0}), 480)
    assert (config.batch_size, config.epochs, config.warmup_epochs) == (32, 1.0, 0.1)
    assert [(row.name, row.value) for row in choices] == [("batch_size", "4096 → 32"), ("warmup_epochs", "0.1")]
    assert choices[0].why == "the data has 480 samples"


def test_a_typed_warm_up_that_is_longer_than_the_run_is_refused(pace):
    with pytest.raises(ConfigError, match="warmup_epochs = 40"):
        choose(Asked(TinyConfig(), {"epochs": 1.0, "warmup_epochs": 40.0}))


@pytest.mark.parametrize("limit", [{"minutes": 0}, {"minutes": -1.0}, {"max_steps": 0}])
def test_no_time_and_no_steps_are_refused(limit):
    with pytest.raises(ConfigError, match=f"{next(iter(limit))} = "):
        Asked(**limit)


def test_a_method_without_a_rule_asks_for_a_preset():
    recipe = dataclasses.replace(RECIPE, fitted=None)
    with pytest.raises(ConfigError, match="name one of its presets"):
        auto.starting_point(recipe, Asked(), None)


def test_the_command_prints_its_choices_keeps_them_and_can_be_repeated(tmp_path, capsys):
    data, out = write_pictures(tmp_path / "data", RECIPE.preset("demo"), 20), tmp_path / "run"
    command = ["train", "--data", str(data), "--max-steps", "3", "--device", "cpu", "--workers", "0"]
    assert main(RECIPES, [*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "batch_size" in said and "--batch-size" in said and f"--config {out}" in said
    stored = json.loads((out / "run.json").read_text())["config"]
    assert (stored["batch_size"], stored["image_size"]) == (8, 32)

    # The same command resumes, whatever would be chosen now; the printed one makes the same run.
    write_pictures(tmp_path / "more", RECIPE.preset("demo"), 20)
    assert main(RECIPES, [*command, "--out", str(out)]) == 0
    again = ["train", "--data", str(data), "--config", str(out), "--out", str(tmp_path / "again"), *command[5:]]
    assert main(RECIPES, again) == 0
    assert json.loads((tmp_path / "again/run.json").read_text())["config"] == stored
    assert (tmp_path / "again/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_folder_of_five_thousand_pictures_trains_with_nothing_but_its_name(tmp_path, capsys):
    write_strangers(tmp_path / "data", Stranger(5000, (16, 31), "L", 0))
    out = tmp_path / "run"
    command = ["train", "--data", str(tmp_path / "data"), "--out", str(out), "--max-steps", "3"]
    assert main(RECIPES, [*command, "--device", "cpu", "--workers", "0"]) == 0
    assert "5,000 samples, 3 steps of" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file() and (out / "report.html").is_file()
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_a_choice_is_made_once(tmp_path, monkeypatch):
    data = write_pictures(tmp_path / "data", RECIPE.preset("demo"), 20)
    train(RECIPE, Asked(max_steps=2), data=data, out=tmp_path / "run", options=QUICK)
    stored = (tmp_path / "run/run.json").read_text()
    monkeypatch.setattr(auto, "chosen", None)  # would fail
    train(RECIPE, Asked(minutes=5), data=data, out=tmp_path / "run", options=QUICK)
    assert (tmp_path / "run/run.json").read_text() == stored
    assert from_dict(TinyConfig, json.loads(stored)["config"]).image_size == 32
