"""`ssl_train.report.page`: every state that a run folder can be in gives a page that opens."""

from __future__ import annotations

import base64
import html
import json
import math
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ssl_train.report.page import write_report

SETTINGS = {"epochs": 100.0, "batch_size": 256, "weight_decay": 0.05, "mask_ratio": 0.75, "classes": ["<script>"]}
CONFIG = {"model_type": "vit_mae", "hidden_size": 192, "ssl_core": {"method": "ssl_mae.mae:MAE", "config": SETTINGS}}
RECORD = {
    "method": "ssl_mae.mae:MAE",
    "config": SETTINGS,
    "data": "photos/train",
    "created": "2025-11-03T14:20:07+00:00",
    "device": "cuda (H100)",
    "parameters": 7_842_816,
    "can_collapse": True,
}
EVIL = "</title></svg><script>alert('1')</script><img src=x onerror=\"alert(1)\"> & é"


def scores(name: str, knn: float, linear: float, fewshot: float, interval: float) -> dict:
    few = {"shots": 5, "mean": fewshot, "interval": interval}
    return {"features": name, "knn": knn, "linear": linear, "fewshot": few, "details": {"dim": 192}, "seconds": {}}


EVALUATION = {
    "data": "photos/test",
    "protocol": {
        "train": {"n": 8000, "skipped": 0},
        "test": {"n": 2000, "skipped": 0},
        "knn": {"k": 20, "T": 0.07},
        "linear": {"grid": [10.0**k for k in range(-6, 7)]},
        "fewshot": {"C": 1.0, "shots": [5], "interval": "half width, 95 %, Student's t", "indices": [[1, 2], [3, 4]]},
    },
    "rows": [
        scores("pretrained", 0.612, 0.724, 0.548, 0.021),
        scores("random init", 0.301, 0.412, 0.287, 0.018),
        scores("raw pixels", 0.338, 0.395, 0.301, 0.024),
    ],
}


def metric_lines(steps: int = 1200, every: int = 2) -> list[dict]:
    """Lines as `fit` writes them: a noisy decaying loss, a cosine schedule, health sometimes."""
    rng = random.Random(0)
    lines = []
    for step in range(every, steps + 1, every):
        t = step / steps
        line = {
            "step": step,
            "epoch": round(100 * t, 3),
            "loss": 0.38 + 0.62 * math.exp(-7 * t) + rng.gauss(0, 0.01),
            "lr": 7.5e-5 * (1 + math.cos(math.pi * t)),
            "weight_decay": 0.05,
            "grad_norm": math.exp(rng.gauss(0, 0.2)),
            "images_per_second": rng.gauss(2400, 60),
            "data_wait": rng.uniform(0.01, 0.03),
            "seconds": 11.4 * step,
        }
        if step % (steps // 24) == 0:
            line |= {"health/feature_std": 0.5 + 0.4 * t, "health/rankme": 18 + 96 * t, "health/knn": 0.3 + 0.3 * t}
        lines.append(line)
    return lines


def make_run(
    folder: Path,
    lines: list[dict],
    *,
    record: dict = RECORD,
    evaluation: dict | None = None,
    tail: str = "",
    finished: bool = False,
) -> Path:
    """A run folder with these lines of metrics.jsonl and, after them, `tail` as it is.

    Like training, it has run.json from the start, config.json and weights at the end.
    """
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    if finished:
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "model.safetensors").touch()
    return folder


def add_pictures(run: Path) -> None:
    """A wide and a small figure, with their captions, as a package's `show` writes them."""
    (run / "figures").mkdir()
    Image.radial_gradient("L").resize((1040, 264)).save(run / "figures" / "reconstruction.png")
    Image.radial_gradient("L").resize((420, 420)).save(run / "figures" / "feature_map.png")
    captions = {
        "reconstruction.png": "Masked inputs above, what the decoder makes of them below.",
        "feature_map.png": "Features of 600 test pictures in two dimensions, coloured by class.",
    }
    (run / "figures" / "captions.json").write_text(json.dumps(captions))


def make_whole_run(folder: Path) -> Path:
    """Everything a finished run may hold, other scalars than MAE's included."""
    lines = metric_lines()
    for i, line in enumerate(lines):
        line |= {"teacher_entropy": 4 - i / 400, "momentum": 1 - 4e-3 * math.exp(-i / 200)}
        line |= {"retrieval/top1": i / 1000, "retrieval/median_rank": 40 * math.exp(-i / 200)}
        if "health/rankme" in line:
            line |= {"health/alignment": 0.9 - i / 2000, "health/uniformity": -1.2 - i / 500}
    run = make_run(folder, lines, evaluation=EVALUATION, finished=True)
    add_pictures(run)
    reasons = {"00017": "truncated after 12,288 bytes", "00904": "not an image", "02210": "empty"}
    bad = [{"name": f"photos/train/cat/{name}.jpg", "reason": reason} for name, reason in reasons.items()]
    (run / "bad_samples.json").write_text(json.dumps(bad))
    return run


class _Page(HTMLParser):
    """Reads a page and fails on a tag that is closed out of turn or never."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.bold: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open[-2:] == ["td", "b"]:
            self.bold.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def drawings(page: str) -> list[ElementTree.Element]:
    """Every outermost <svg>, through a parser of XML."""
    found, depth, start = [], 0, 0
    for tag in re.finditer(r"<svg\b|</svg>", page):
        if tag[0] == "<svg":
            start = tag.start() if depth == 0 else start
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                found.append(ElementTree.fromstring(page[start : tag.end()]))
    assert depth == 0
    return found


def read(run: Path) -> tuple[str, _Page]:
    """Writes the report and checks what must hold for any: well formed, self-contained,
    drawable."""
    path = write_report(run)
    assert path == run / "report.html"
    source = path.read_text(encoding="utf-8")
    page = _Page(source)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not attributes.keys() & {"href", "xlink:href", "srcset", "style"}
    assert not re.search(r"https?://|url\(|@import", source)
    for drawing in drawings(source):
        for element in drawing.iter():
            assert not re.search("nan|inf", " ".join(element.attrib.get(k, "") for k in GEOMETRY))
    return source, page


GEOMETRY = ("d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")


def chart(source: str, title: str) -> ElementTree.Element:
    """The drawing of the chart with this title."""
    pattern = rf"<figcaption><b>{re.escape(title)}[^<]*</b>.*?</figcaption>\s*(<svg.*?)</figure>"
    return ElementTree.fromstring(re.search(pattern, source, re.DOTALL)[1])


def titles(source: str) -> list[str]:
    return re.findall(r'<figure class="chart[^>]*>\s*<figcaption><b>(.*?)</b>', source)


def labels(drawing: ElementTree.Element, axis: str) -> list[str]:
    return [t.text for t in drawing.iter("text") if t.get("class") == axis and t.text != "step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, _Page]:
    run = make_whole_run(tmp_path_factory.mktemp("runs") / "demo")
    return run, *read(run)


def test_header_names_method_data_date_steps_device_time_and_parameters(whole):
    text = whole[2].text
    for fact in (
        "Method MAE",
        "Data photos/train",
        "Date 2025-11-03 14:20 UTC",
        "Steps 1,200 · epoch 100 of 100",
        "Device cuda (H100)",
        "Wall time 3 h 48 min",
        "Parameters 7.843M",
    ):
        assert fact in text
    assert "Finished" in text


def test_every_chart_has_axes_ticks_hover_titles_and_a_name(whole):
    source = whole[1]
    expected = ["Loss", "Learning rate", "Gradient norm", "Samples per second"]
    expected += ["Time spent waiting for data", "Feature std", "RankMe"]
    assert set(expected) <= set(titles(source))
    for title in titles(source):
        drawing = chart(source, title)
        assert drawing.get("role") == "img" and drawing.get("aria-label").startswith(title)
        assert len(labels(drawing, "x")) >= 2 and len(labels(drawing, "y")) >= 2
        assert all(t.text.startswith("step ") for t in drawing.iter("title"))
        assert len(list(drawing.iter("title"))) >= 20
        assert any(path.get("class") == "line" for path in drawing.iter("path"))


def test_whole_page_stays_below_two_megabytes(whole):
    assert len(whole[1].encode()) < 2_000_000


def test_the_same_folder_gives_the_same_bytes(whole):
    run, source, _ = whole
    assert write_report(run).read_text(encoding="utf-8") == source


def test_best_value_of_each_column_is_bold_and_alone(whole):
    assert whole[2].bold == ["61.2 %", "72.4 %", "54.8 %"]


def test_evaluation_states_n_interval_protocol_and_gains(whole):
    text = whole[2].text
    assert "Measured on photos/test, n = 2,000, 8,000 samples to learn from" in text
    assert "± is the half width, 95 %, Student's t" in text
    assert "54.8 % ± 2.1" in text and "Few-shot, 5 a class" in text
    assert "knn T: 0.07 linear grid: 13 values fewshot C: 1 fewshot shots: 5" in text
    assert "fewshot indices: 2 values" in text
    assert "31.2 points above random init, 32.9 points above raw pixels" in text


def test_bars_show_scores_and_intervals_to_scale(whole):
    bars = [d for d in drawings(whole[1]) if d.get("class") == "bar"]
    assert len(bars) == 9
    assert bars[0].find("rect").get("width") == "61.20%"
    line = bars[2].find("line")
    assert (line.get("x1"), line.get("x2")) == ("52.70%", "56.90%")


def test_pictures_are_embedded_whole_with_their_captions_in_order(whole):
    run, _, page = whole
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    names = ["reconstruction.png", "feature_map.png"]
    captions = json.loads((run / "figures" / "captions.json").read_text())
    for image, name in zip(images, names, strict=True):
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (run / "figures" / name).read_bytes()
        assert image["alt"] == captions[name] and captions[name] in page.text
    assert (images[0]["width"], images[0]["height"]) == ("1040", "264")


def test_other_scalars_get_small_curves_grouped_by_prefix(whole):
    source = whole[1]
    more = source[source.index("<h2>More</h2>") : source.index("<h2>Bad samples</h2>")]
    found = re.findall(r"<h3>(.*?)</h3>|<figcaption><b>(.*?)</b>", more)
    assert [a or b for a, b in found] == [
        *("momentum", "teacher_entropy"),
        *("health", "alignment", "uniformity"),
        *("retrieval", "median_rank", "top1"),
    ]


def test_bad_samples_are_counted_and_listed(whole):
    text = whole[2].text
    assert "3 samples could not be read" in text
    assert "photos/train/cat/00904.jpg not an image" in text


def test_many_bad_samples_are_counted_and_the_first_ones_listed(tmp_path):
    run = make_run(tmp_path / "run", metric_lines()[:2])
    bad = [{"name": f"{i}.jpg", "reason": "empty"} for i in range(1234)]
    (run / "bad_samples.json").write_text(json.dumps(bad))
    source, page = read(run)
    assert "1,234 samples could not be read." in page.text and "The first 200 are listed." in page.text
    assert source.count("<td>empty</td>") == 200


def test_pictures_of_one_colour_are_counted_apart(tmp_path):
    run = make_run(tmp_path / "run", metric_lines()[:2])
    reasons = ["one colour all over"] * 70 + ["empty"]
    (run / "bad_samples.json").write_text(
        json.dumps([{"name": f"{i}.png", "reason": r} for i, r in enumerate(reasons)])
    )
    (run / "run.json").write_text(json.dumps({**RECORD, "samples": 1685}))
    _, page = read(run)
    assert "70 of 1,685 pictures are one colour all over." in page.text
    assert "1 sample could not be read." in page.text and "are listed" not in page.text


def test_whole_configuration_is_on_the_page(whole):
    shown = re.findall(r"<details><summary>(\w+\.json)</summary><pre><code>(.*?)</code>", whole[1], re.DOTALL)
    assert {name: json.loads(html.unescape(text)) for name, text in shown} == {
        "config.json": CONFIG,
        "run.json": RECORD,
    }


def test_commands_repeat_the_path_as_given(tmp_path, monkeypatch):
    make_run(tmp_path / "my run", metric_lines()[:9], finished=True)
    monkeypatch.chdir(tmp_path)
    _, page = read(Path("my run"))
    assert "ssl-mae evaluate 'my run' --data photos/train" in page.text
    assert "ssl-mae embed 'my run' --data" in page.text
    code = "".join(page.words)
    code = code[code.index("from ssl_mae") : code.index("\nConfiguration")]
    assert code.splitlines()[:2] == ["from ssl_mae import MAE", 'model = MAE.from_pretrained("my run")']
    compile(code, "code", "exec")


def test_built_in_data_needs_no_flag(tmp_path):
    _, page = read(make_run(tmp_path / "run", metric_lines()[:9], record={**RECORD, "data": "built-in"}))
    assert f"ssl-mae evaluate {tmp_path}/run ssl-mae embed" in page.text
    assert "These need the weights" in page.text


@pytest.mark.parametrize("name", ["ssl_mae:MAE; rm -rf ~", "x; rm -rf ~:MAE", "mae", None])
def test_method_that_is_no_import_string_reaches_no_command(tmp_path, name):
    _, page = read(make_run(tmp_path / "run", metric_lines()[:9], record={"method": name}))
    assert "no command to show" in page.text
    assert "evaluate" not in page.text[page.text.index("Go on", page.text.index("Feature health")) :]


PLACES = ["run", "key", "method", "data", "device", "created", "row", "protocol", "measured", "caption", "sample"]


@pytest.mark.parametrize("place", PLACES)
def test_text_from_every_file_is_escaped(tmp_path, place):
    evil = "<svg onload=alert(1)><script>alert('1')</script>" if place == "created" else EVIL
    text = {name: evil if name == place else "plain" for name in PLACES}
    lines = metric_lines()[:50]
    lines[9][text["key"]] = 1.0
    record = {**RECORD, **{key: text[key] for key in ("method", "data", "device", "created")}}
    evaluation = {
        "data": "photos/test",
        "protocol": {text["protocol"]: text["protocol"]},
        "rows": [{"features": text["row"], "knn": 0.5}],
        "measured": {"of": text["measured"], "summary": ["measured on …", text["measured"]]},
    }
    name = "a<script>'\"&" if place == "run" else "run"
    run = make_run(tmp_path / name, lines, record=record, evaluation=evaluation)
    add_pictures(run)
    (run / "figures" / "captions.json").write_text(json.dumps({"feature_map.png": text["caption"]}))
    (run / "bad_samples.json").write_text(json.dumps([{"name": text["sample"], "reason": text["sample"]}]))
    source, page = read(run)
    assert "<script" not in source and 'onerror="' not in source
    assert {"run": name, "created": "<svg onload=aler"}.get(place, "<script>alert('1')<") in page.text


def test_characters_that_xml_and_utf8_cannot_hold_are_replaced(tmp_path):
    lines = metric_lines()[:3]
    lines[0]["bad\x00\x1b\x85key"] = lines[1]["bad\x00\x1b\x85key"] = 1.0
    run = make_run(tmp_path / "run", lines)
    (run / "bad_samples.json").write_text(json.dumps([{"name": "\udcff\ud800.jpg", "reason": "\v"}]))
    _, page = read(run)
    assert "bad\ufffd\ufffd\ufffdkey" in page.text and "\ufffd\ufffd.jpg" in page.text


@pytest.mark.parametrize("count", [0, 1, 2, 5, 60])
def test_run_in_progress_gives_a_page(tmp_path, count):
    source, page = read(make_run(tmp_path / "run", metric_lines()[:count]))
    assert "In progress or stopped" in page.text and "Not evaluated yet" in page.text
    assert ("No step has been logged yet" in page.text) == (count == 0)
    assert ("Loss" in titles(source)) == (count > 0)
    assert [tag for tag, _ in page.tags].count("details") == 1  # run.json; config.json comes with the weights
    if count == 1:
        assert "Steps 2 · epoch 0.167 of 100" in page.text and "Loss 1.002 first step" in page.text
    if 0 < count < 40:
        assert [path.get("class") for path in chart(source, "Loss").iter("path")] == ["line"]


def test_lines_that_are_torn_or_repeated_are_mentioned(tmp_path):
    first = [{"step": s, "loss": 100.0 + s, "seconds": 10.0 * s} for s in range(1, 31)]
    again = [{"step": s, "loss": 1.0 + s, "seconds": 10.0 * (s - 20)} for s in range(21, 41)]
    source, page = read(make_run(tmp_path / "run", first + again, tail='{"step": 41, "lo'))
    assert "Left out 1 line of metrics.jsonl that could not be read (line 51)." in page.text
    assert "The run was resumed: 10 steps from step 21 on were logged again" in page.text
    assert "Wall time 8 min 20 s" in page.text
    hover = [t.text for t in chart(source, "Loss").iter("title")]
    assert "step 25: 26" in hover and "step 20: 120" in hover and len(hover) == 40


def test_of_many_torn_lines_the_first_are_numbered(tmp_path):
    _, page = read(make_run(tmp_path / "run", metric_lines()[:9], tail="{\n" * 7))
    assert "Left out 7 lines of metrics.jsonl that could not be read (line 10, 11, 12, 13, 14, …)" in page.text


def test_files_that_are_damaged_are_named(tmp_path):
    run = make_run(tmp_path / "run", metric_lines()[:9], finished=True)
    add_pictures(run)
    (run / "run.json").write_text("{torn")
    (run / "figures" / "feature_map.png").write_bytes(b"GIF89a")
    source, page = read(run)
    assert "run.json is damaged and was left out" in page.text
    assert "figures/feature_map.png is not a whole PNG file" in page.text and source.count("<img") == 1
    assert "Method MAE" in page.text and "Date" not in page.text[: page.text.index("Training")]


def test_empty_metrics_file_without_a_newline_gives_a_page(tmp_path):
    run = make_run(tmp_path / "run", [])
    (run / "metrics.jsonl").write_bytes(b"")
    _, page = read(run)
    assert "Steps 0" in page.text and "could not be read" not in page.text


def test_values_that_are_not_finite_are_counted(tmp_path):
    lines = [{"step": s, "loss": 1.0 / s, "grad_norm": math.nan} for s in range(1, 31)]
    for s, value in ((10, math.nan), (11, math.inf), (13, -math.inf), (20, 10**400), (30, math.nan)):
        lines[s - 1]["loss"] = value
    _, page = read(make_run(tmp_path / "run", lines))
    assert "loss 5 (first at step 10), grad_norm 30 (first at step 1)." in page.text
    assert "Loss not finite" in page.text
    assert "No finite value was logged" in page.text


def test_rates_are_medians_and_shares_are_percent(tmp_path):
    rates = [(10.0, 0.01), (100.0, 0.02), (104.0, 0.04), (9000.0, math.nan)]
    lines = [{"step": s, "images_per_second": speed, "data_wait": wait} for s, (speed, wait) in enumerate(rates)]
    _, page = read(make_run(tmp_path / "run", lines))
    assert "Samples per second 102 data wait 2 %" in page.text
    assert "Time spent waiting for data not finite" in page.text and "finite %" not in page.text


def test_long_run_gives_a_small_page(tmp_path):
    lines = [{"step": s, "loss": 2 + math.sin(s), "lr": 1e-3} for s in range(1, 20_001)]
    assert len(read(make_run(tmp_path / "run", lines))[0]) < 100_000


@pytest.mark.parametrize(
    ("std", "rankme", "verdict", "is_bad"),
    [
        ([0.9, 0.95], [40.0, 80.0], "no sign of collapse", False),
        ([0.9, 0.001], [40.0, 80.0], "The features have collapsed: feature std 0.001", True),
        ([0.9, 0.9], [40.0, 1.05], "RankMe 1.05.", True),
        ([0.9, 0.2], [40.0, 15.0], "are collapsing: feature std 0.2, RankMe 15; the run began at", True),
        ([0.9, 0.2], [40.0, 30.0], "no sign of collapse", False),
        ([0.9, 0.8], [40.0, 15.0], "no sign of collapse", False),
        ([0.9, math.nan], [40.0, 40.0], "The last feature std is not finite", True),
        ([0.9, 0.95], [40.0, math.inf], "The last RankMe is not finite", True),
    ],
)
def test_feature_health_says_what_its_figures_mean(tmp_path, std, rankme, verdict, is_bad):
    lines = metric_lines()[:2]
    for i, line in enumerate(lines):
        line |= {"health/feature_std": std[i], "health/rankme": rankme[i], "health/knn": 0.5}
    source, page = read(make_run(tmp_path / "run", lines))
    assert verdict in page.text
    assert "near 0 when every input gets the same vector" in page.text
    assert ('class="verdict bad"' in source) == is_bad


def test_features_of_a_method_that_cannot_collapse_may_narrow(tmp_path):
    lines = metric_lines()[:2]
    lines[0] |= {"health/feature_std": 0.9, "health/rankme": 40.0}
    lines[1] |= {"health/feature_std": 0.2, "health/rankme": 15.0}
    _, page = read(make_run(tmp_path / "run", lines, record={**RECORD, "can_collapse": False}))
    assert "no sign of collapse" in page.text


def test_baseline_that_wins_is_named_as_such(tmp_path):
    rows = [{"features": "pretrained", "linear": 0.4}, {"features": "raw pixels", "linear": 0.45}]
    run = make_run(tmp_path / "run", metric_lines()[:9], evaluation={"rows": rows})
    _, page = read(run)
    assert "5.0 points below raw pixels. A baseline does as well or better" in page.text
    assert page.bold == ["45.0 %"] and "n is not stated" in page.text


def test_fine_tuning_alone_is_a_table_of_its_own(tmp_path):
    rows = [{"features": "pretrained", "finetune": 0.75}, {"features": "random init", "finetune": 0.5}]
    evaluation = {"data": "photos", "protocol": {"finetune": {"config": {"epochs": 5.0}}}, "rows": rows}
    _, page = read(make_run(tmp_path / "run", metric_lines()[:9], evaluation=evaluation))
    assert "Fine-tuning on pretrained features: 25.0 points above random init." in page.text
    assert page.bold == ["75.0 %"] and "finetune config epochs: 5" in page.text


def test_scores_of_steps_rise_by_step_and_end_with_the_runs_own(tmp_path):
    run = make_run(tmp_path / "run", metric_lines()[:9], evaluation={**EVALUATION, "data": "photos"})
    for step, knn in ((12_000, 0.55), (6_000, 0.4)):
        place = run / "snapshots" / f"step-{step:06d}"
        place.mkdir(parents=True)
        rows = [{"features": "pretrained", "knn": knn}, {"features": "raw pixels", "knn": 0.99}]
        (place / "evaluation.json").write_text(json.dumps({"data": "photos", "rows": rows}))
    _, page = read(run)
    table = "Weights k-NN Linear probe Few-shot, 5 a class step 6,000 on photos 40.0 % – – "
    assert f"{table}step 12,000 on photos 55.0 % – – the run on photos 61.2 % 72.4 % 54.8 % ± 2.1" in page.text
    assert "99.0" not in page.text, "of a step only its own weights"


def test_a_run_of_which_a_step_alone_was_evaluated_says_so(tmp_path):
    run = make_run(tmp_path / "run", metric_lines()[:9])
    place = run / "snapshots" / "step-000008"
    place.mkdir(parents=True)
    rows = [{"features": "pretrained", "knn": 0.5}]
    (place / "evaluation.json").write_text(json.dumps({"data": "photos", "rows": rows}))
    (run / "snapshots" / "step-000009").mkdir()
    _, page = read(run)
    assert "step 8 on photos 50.0 %" in page.text and "Not evaluated yet" not in page.text


def test_encoder_without_a_score_has_a_dash(tmp_path):
    rows = [{"features": "pretrained", "knn": 0.5, "finetune": 0.75}, {"features": "raw pixels", "knn": 0.25}]
    _, page = read(make_run(tmp_path / "run", metric_lines()[:9], evaluation={"rows": rows}))
    assert "raw pixels 25.0 % –" in page.text and page.bold == ["50.0 %", "75.0 %"]


@pytest.mark.parametrize("rows", [[], EVALUATION["rows"]])
def test_figures_that_need_no_labels_are_shown(tmp_path, rows):
    summary = ["measured on the test split", "171,128 tokens; perplexity 21.50", "generated:", "  | def f(x):"]
    measured = {"perplexity": 21.5, "of": "the test split", "summary": summary}
    evaluation = {"data": "stdlib", "protocol": {}, "rows": rows, "measured": measured}
    source, page = read(make_run(tmp_path / "run", metric_lines()[:9], evaluation=evaluation))
    assert "Measured on the test split. 171,128 tokens; perplexity 21.50 generated: | def f(x):" in page.text
    assert '<li class="code">  | def f(x):</li>' in source
    assert "Not evaluated yet" not in page.text
    assert ("<table>" in source) == bool(rows)


def test_no_run_is_said_to_be_of_images(whole):
    assert "images per second" not in whole[2].text.lower()


def test_evaluation_without_figures_counts_as_none(tmp_path):
    evaluation = {"data": "photos", "protocol": {}, "rows": []}
    _, page = read(make_run(tmp_path / "run", metric_lines()[:9], evaluation=evaluation))
    assert "Not evaluated yet: the first command under “Go on” does it." in page.text


def test_report_is_replaced_in_one_step(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", metric_lines()[:9])
    before = write_report(run).read_bytes()
    (run / "model.safetensors").touch()

    def fail(source: Path, target: Path) -> None:
        assert Path(source).parent == run and b"Finished" in Path(source).read_bytes()
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    files = sorted(path.name for path in run.iterdir())
    with pytest.raises(OSError, match="no space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == files


def test_import_brings_in_nothing_heavy():
    heavy = "{'torch', 'numpy', 'PIL', 'matplotlib', 'jinja2'}"
    code = f"import sys; import ssl_train.report.page; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
