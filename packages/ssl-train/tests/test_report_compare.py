"""Several runs on one page."""

from __future__ import annotations

import json
import re

import pytest

from ssl_testing.tiny import RECIPES
from ssl_train.cli.main import main
from ssl_train.report.compare import as_text, compare, rows
from ssl_train.report.read import ReportError

KNN = {"features": "pretrained", "knn": 0.5, "fewshot": {"shots": 5, "mean": 0.25, "interval": 0.02}}


def write_run(folder, *, method="ssl_tiny:Tiny", losses=(2.0, 1.0), evaluation=None, **config):
    folder.mkdir()
    settings = {"epochs": 2.0, "batch_size": 8, **config}
    (folder / "run.json").write_text(json.dumps({"method": method, "config": settings, "data": "/where/photos"}))
    lines = [{"step": 10 * (i + 1), "loss": loss, "seconds": i + 1.0} for i, loss in enumerate(losses)]
    health = {"health/feature_std": 0.5, "health/rankme": 12.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line | health) + "\n" for line in lines))
    if evaluation:
        (folder / "evaluation.json").write_text(json.dumps({"data": "photos", "protocol": {}, "rows": [evaluation]}))
    return folder


def test_the_table_has_what_was_reached_and_the_settings_that_differ(tmp_path):
    a = write_run(tmp_path / "a", evaluation=KNN, base_lr=0.1, dim=8)
    b = write_run(tmp_path / "b", losses=(3.0, 2.5, 1.25), base_lr=0.2)
    lines = [re.split(r"  +", line) for line in as_text(rows(compare([a, b], tmp_path / "page.html"))).splitlines()]
    table = {title: cells for title, *cells in lines}
    assert table["steps"] == ["20", "30"] and table["loss"] == ["1", "1.25"]
    assert table["k-NN"] == ["50.0 %", "–"] and table["Few-shot, 5 a class"] == ["25.0 % ± 2.0", "–"]
    assert table["base_lr"] == ["0.1", "0.2"]
    assert table.keys().isdisjoint({"epochs", "batch_size", "dim"}), "the same in both, or of one alone"


def test_the_page_draws_the_curves_of_all_runs_on_common_axes(tmp_path):
    a, b = write_run(tmp_path / "a", losses=(4.0, 2.0)), write_run(tmp_path / "b", losses=(8.0, 4.0, 0.0))
    compare([a, b], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    loss = page[page.index("<b>Loss") : page.index("<b>Feature std")]
    paths = dict(re.findall(r'class="line run(\d)" d="([^"]+)"', loss))
    points = {run: re.findall(r"(\d+) (\d+)", data) for run, data in paths.items()}
    # from step 10 on the left to step 30 on the right, from 8 at the top to 0 at the bottom
    assert points["0"] == [("0", "5000"), ("5000", "7500")]
    assert points["1"] == [("0", "0"), ("5000", "5000"), ("10000", "10000")]
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_losses_of_different_methods_are_not_drawn_over_each_other(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", method="ssl_other:Other")
    compare([a, b], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<b>Loss" not in page and "measure different things" in page and "<b>RankMe" in page


def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path):
    a = write_run(tmp_path / "a")
    for runs in ([a, tmp_path / "nothing"], [a], [a] * 9):
        with pytest.raises(ReportError):
            compare(runs, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_prints_the_table_and_names_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert main(RECIPES, ["compare", "a", "b"]) == 0
    said = capsys.readouterr().out
    assert said.split()[:3] == ["method", "Tiny", "Tiny"] and said.endswith("look at  compare.html\n")
    assert (tmp_path / "compare.html").is_file()
    assert main(RECIPES, ["compare", "a", "b", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["runs"][0]
    assert (first["run"], first["steps"], first["loss"], first["config"]["batch_size"]) == ("a", 20, 1.0, 8)
