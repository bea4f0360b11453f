"""`ssl_train.report.read`: whatever state a run folder is in, what can be read of it is read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from ssl_train.report.read import ReportError, Score, read_run

RECORD = {"method": "ssl_mae.mae:MAE", "config": {"epochs": 100.0}, "data": "photos/train"}


def make_run(folder: Path, lines: list[dict], **files: object) -> Path:
    """A run folder with these lines of metrics.jsonl, run.json, and further JSON files by stem."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in {"run": RECORD, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def lines(count: int) -> list[dict]:
    return [{"step": s, "loss": 1.0 / s, "seconds": 10.0 * s} for s in range(1, count + 1)]


@pytest.mark.parametrize(
    "tail",
    ['{"step": 122, "lo', "[1, 2]\n", "12\n", '{"step": "x"}\n', '{"step": null}\n', '{"loss": 1}\n', "\x00\x00\n"],
)
def test_torn_line_is_left_out(tmp_path, tail):
    run = make_run(tmp_path / "run", lines(60))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(tail)
    found = read_run(run)
    assert found.torn == [61] and len(found.series["loss"]) == 60


def test_line_of_bytes_that_are_no_text_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", lines(9))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 20, "loss\xff\xfe": 1}\n' + b"[" * 100_000 + b"\n")
    assert read_run(run).torn == [10, 11]


def test_last_line_of_a_repeated_step_wins_and_time_adds_up(tmp_path):
    first = [{"step": s, "loss": 100.0 + s, "seconds": 10.0 * s} for s in range(1, 31)]
    again = [{"step": s, "loss": 1.0 + s, "seconds": 10.0 * (s - 20)} for s in range(21, 41)]
    found = read_run(make_run(tmp_path / "run", first + again))
    assert found.repeated == list(range(21, 31))
    assert found.seconds == 500
    assert dict(found.series["loss"]) == {s: (1.0 if s > 20 else 100.0) + s for s in range(1, 41)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, 1e308, "text", None])
def test_what_no_axis_can_hold_is_nan(tmp_path, value):
    found = read_run(make_run(tmp_path / "run", [{"step": 1, "loss": value}, {"step": 2, "loss": 0.5}]))
    (_, first), (_, second) = found.series["loss"]
    assert math.isnan(first) and second == 0.5


@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "evaluation.json", "bad_samples.json", "figures/captions.json"]
)
@pytest.mark.parametrize("content", ["{torn", '"text"', "", "[" * 100_000])
def test_file_that_cannot_be_read_is_named(tmp_path, name, content):
    run = make_run(tmp_path / "run", lines(9))
    (run / "figures").mkdir()
    (run / name).write_text(content)
    (note,) = read_run(run).damaged
    assert note.startswith(f"{Path(name).name} is damaged and was left out")


def test_evaluation_of_another_shape_is_damaged(tmp_path):
    for content in ({"rows": None}, {"rows": [{"knn": 0.5}]}, {"rows": [{"features": "a", "knn": "high"}]}):
        found = read_run(make_run(tmp_path / "run", lines(9), evaluation=content))
        assert found.damaged and found.evaluation.columns == {}


def test_scores_are_read_by_protocol(tmp_path):
    few = {"shots": 5, "mean": 0.5, "interval": 0.04}
    rows = [{"features": "pretrained", "knn": 0.25, "fewshot": few}, {"features": "random init", "knn": 0.125}]
    measured = {"of": "the data's own test split", "summary": ["measured on …", "perplexity 21.5"]}
    content = {"data": "photos", "protocol": {"classes": 3}, "rows": rows, "measured": measured}
    evaluation = read_run(make_run(tmp_path / "run", lines(9), evaluation=content)).evaluation
    assert evaluation.columns == {
        "k-NN": {"pretrained": Score(0.25), "random init": Score(0.125)},
        "Few-shot, 5 a class": {"pretrained": Score(0.5, 0.04)},
    }
    assert (evaluation.data, evaluation.encoders) == ("photos", ["pretrained", "random init"])
    assert evaluation.measured_on == "the data's own test split" and evaluation.measured == ["perplexity 21.5"]


@pytest.mark.parametrize("damage", [lambda png: png[: len(png) // 2], lambda png: b"GIF89a" + png[6:], lambda _: b""])
def test_picture_that_is_not_whole_is_named_and_left_out(tmp_path, damage):
    run = make_run(tmp_path / "run", lines(9))
    (run / "figures" / "folder.png").mkdir(parents=True)
    for name in ("broken", "feature_map"):
        Image.new("RGB", (40, 30)).save(run / "figures" / f"{name}.png")
    broken = run / "figures" / "broken.png"
    broken.write_bytes(damage(broken.read_bytes()))
    found = read_run(run)
    assert found.damaged == ["figures/broken.png is not a whole PNG file and was left out."]
    assert [(p.caption, p.width, p.height) for p in found.pictures] == [("Feature map", 40, 30)]


def test_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ReportError, match="is not a folder: give the one that training wrote"):
        read_run(tmp_path / "absent")


def test_folder_without_metrics_is_an_error(tmp_path):
    run = make_run(tmp_path / "run", [])
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ReportError, match=r"run holds no metrics\.jsonl"):
        read_run(str(run))


@pytest.mark.parametrize("kept", [[], ["run.json"], ["config.json"], ["run.json", "config.json"]])
def test_either_config_or_run_record_is_enough(tmp_path, kept):
    own = {key: RECORD[key] for key in ("method", "config")}
    run = make_run(tmp_path / "run", lines(9), config={"model_type": "vit_mae", "ssl_core": own})
    for name in {"run.json", "config.json"} - set(kept):
        (run / name).unlink()
    if kept:
        assert read_run(run).started == (RECORD if "run.json" in kept else own)
    else:
        with pytest.raises(ReportError, match=r"neither config\.json nor run\.json"):
            read_run(run)
