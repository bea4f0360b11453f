"""`ssl_train.report.page`: every state that a run folder can be in gives a page that opens."""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ssl_train.report.page import write_report
from ssl_train.report.read import ReportError

SETTINGS = {"epochs": 100.0, "batch_size": 256, "weight_decay": 0.05, "mask_ratio": 0.75, "classes": ["<script>"]}
CONFIG = {
    "model_type": "vit_mae",
    "hidden_size": 192,
    "image_size": 64,
    "ssl": {"method": "ssl_mae.mae:MAE", "config": SETTINGS},
}
RECORD = {
    "method": "ssl_mae.mae:MAE",
    "config": SETTINGS,
    "data": "photos/train",
    "created": "2025-11-03T14:20:07+00:00",
    "device": "cuda (H100)",
    "parameters": 7_842_816,
}


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
    """Lines as `fit` writes them: a noisy decaying loss, warm-up and cosine, health sometimes."""
    rng = random.Random(0)
    lines = []
    for step in range(every, steps + 1, every):
        t = step / steps
        rate = 1.5e-4 * min(t / 0.05, 0.5 * (1 + math.cos(math.pi * (t - 0.05) / 0.95)))
        speed = 2400 + rng.gauss(0, 60) - (900 if rng.random() < 0.02 else 0)
        line = {
            "step": step,
            "epoch": round(100 * t, 3),
            "loss": 0.38 + 0.62 * math.exp(-7 * t) + rng.gauss(0, 0.008 + 0.02 * math.exp(-5 * t)),
            "lr": rate,
            "weight_decay": 0.05,
            "grad_norm": math.exp(rng.gauss(math.log(0.4 + 3 * math.exp(-12 * t)), 0.2)),
            "images_per_second": speed,
            "data_wait": max(0.0, rng.gauss(0.018, 0.006)),
            "seconds": round(11.4 * step, 3),
        }
        if step % (steps // 24) == 0:
            line["health/feature_std"] = 0.55 + 0.37 * (1 - math.exp(-5 * t)) + rng.gauss(0, 0.01)
            line["health/rankme"] = 18 + 96 * (1 - math.exp(-4 * t)) + rng.gauss(0, 1.5)
            line["health/knn"] = 0.30 + 0.31 * (1 - math.exp(-3 * t)) + rng.gauss(0, 0.005)
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
    """A run folder with these lines of metrics.jsonl and, after them, `tail` as it is. Like training, it has run.json
    from the start, config.json and weights at the end."""
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
    """Two figures as a package's `show` draws them: a strip of reconstructions and a scatter."""
    rng = random.Random(1)
    (run / "figures").mkdir()
    strip = Image.new("RGB", (1040, 264), "white")
    draw = ImageDraw.Draw(strip)
    for row, column in ((r, c) for r in range(2) for c in range(8)):
        left, top = column * 130, row * 132
        hue = rng.randrange(360)
        for y in range(128):
            shade = f"hsl({hue},45%,{70 - y // 4}%)"
            draw.line((left, top + y, left + 127, top + y), fill=shade)
        x, y = left + rng.randrange(30, 98), top + rng.randrange(30, 98)
        draw.ellipse((x - 24, y - 24, x + 24, y + 24), fill=f"hsl({(hue + 170) % 360},55%,55%)")
        patches = [(i, j) for i in range(8) for j in range(8) if row == 0 and rng.random() < 0.75]
        for i, j in patches:
            box = (left + 16 * i, top + 16 * j, left + 16 * i + 15, top + 16 * j + 15)
            draw.rectangle(box, fill=(190, 190, 190))
    strip.save(run / "figures" / "reconstruction.png")
    scatter = Image.new("RGB", (420, 420), "white")
    draw = ImageDraw.Draw(scatter)
    for i in range(600):
        angle = 2 * math.pi * (i % 6) / 6
        x = 210 + 120 * math.cos(angle) + rng.gauss(0, 22)
        y = 210 + 120 * math.sin(angle) + rng.gauss(0, 22)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=f"hsl({60 * (i % 6)},60%,50%)")
    scatter.save(run / "figures" / "feature_map.png")
    captions = {
        "reconstruction.png": "Masked inputs above, what the decoder makes of them below; "
        "three quarters of the patches are hidden.",
        "feature_map.png": "Features of 600 test pictures in two dimensions, coloured by class.",
    }
    (run / "figures" / "captions.json").write_text(json.dumps(captions))


def make_whole_run(folder: Path) -> Path:
    """Everything a finished run may hold, other scalars than MAE's included."""
    rng = random.Random(2)
    lines = metric_lines()
    for i, line in enumerate(lines):
        t = i / len(lines)
        line["teacher_entropy"] = 4.2 - 1.6 * t + rng.gauss(0, 0.05)
        line["momentum"] = 1 - 0.004 * (math.cos(math.pi * t) + 1) / 2
        line["retrieval/top1"] = 0.2 + 0.5 * t + rng.gauss(0, 0.02)
        line["retrieval/median_rank"] = 40 * math.exp(-3 * t) + 1 + rng.random()
        if "health/rankme" in line:
            line["health/alignment"] = 0.9 - 0.3 * t
            line["health/uniformity"] = -1.2 - 1.6 * t
    run = make_run(folder, lines, evaluation=EVALUATION, finished=True)
    add_pictures(run)
    bad = [
        {"name": f"photos/train/cat/{i:05d}.jpg", "reason": reason}
        for i, reason in (
            (17, "truncated after 12,288 bytes"),
            (904, "not an image"),
            (2210, "empty"),
        )
    ]
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
    """Writes the report and checks what must hold for any: well formed, self-contained, drawable."""
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


def test_smoothed_loss_is_drawn_over_the_raw_loss_and_is_smoother(whole):
    def roughness(path: ElementTree.Element) -> float:
        heights = [float(y) for y in re.findall(r"[ML]\d+ (\d+)", path.get("d"))]
        return sum(abs(b - a) for a, b in itertools.pairwise(heights))

    raw, line = chart(whole[1], "Loss").iter("path")
    assert (raw.get("class"), line.get("class")) == ("raw", "line")
    assert roughness(line) < roughness(raw) / 3


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
    assert bars[0].find("rect").get("width") == "61.2%"
    line = bars[2].find("line")
    assert (line.get("x1"), line.get("x2")) == ("52.7%", "56.9%")


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
    (run / "bad_samples.json").write_text(json.dumps([*bad, "a name alone"]))
    source, page = read(run)
    assert "1,235 samples could not be read, the first 200 here" in page.text
    assert source.count("<td>empty</td>") == 200


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
    assert code.splitlines()[:2] == [
        "from ssl_mae import MAE",
        'model = MAE.from_pretrained("my run")',
    ]
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


@pytest.mark.parametrize("place", ["run", "key", "record", "row", "column", "caption", "sample"])
def test_text_from_every_file_is_escaped(tmp_path, place):
    evil = "</title></svg><script>alert('1')</script><img src=x onerror=\"alert(1)\"> & é"
    name = "a<script>'\"&" if place == "run" else "run"
    lines = metric_lines()[:50]
    lines[9][evil if place == "key" else "key"] = 1.0
    record = {"method": evil, "data": evil, "device": evil, "created": evil} if place == "record" else RECORD
    row = {"features": evil if place == "row" else "pretrained", "knn": 0.5}
    row[evil if place == "column" else "other"] = 0.25
    evaluation = {"data": evil, "protocol": {evil: evil}, "rows": [row]}
    run = make_run(tmp_path / name, lines, record=record, evaluation=evaluation)
    add_pictures(run)
    if place == "caption":
        (run / "figures" / "captions.json").write_text(json.dumps({"feature_map.png": evil}))
    sample = {"name": evil, "reason": evil} if place == "sample" else {"name": "a", "reason": "b"}
    (run / "bad_samples.json").write_text(json.dumps([sample]))
    source, page = read(run)
    assert "<script" not in source and 'onerror="' not in source
    assert (name if place == "run" else "<script>alert('1')</script>") in page.text


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
        assert "Steps 2 · epoch 0.167 of 100" in page.text and "Loss 0.9539 first step" in page.text
    if 0 < count < 40:
        assert [path.get("class") for path in chart(source, "Loss").iter("path")] == ["line"]


def test_single_point_is_drawn_as_a_dot(tmp_path):
    source, _ = read(make_run(tmp_path / "run", metric_lines()[:1]))
    drawing = chart(source, "Loss")
    assert drawing.find("svg/path").get("d").endswith("h0")
    assert drawing.find("circle").get("cx") == "100.00%"
    assert all(float(x.replace(",", "")).is_integer() for x in labels(drawing, "x"))


def test_empty_metrics_file_without_a_newline_gives_a_page(tmp_path):
    run = make_run(tmp_path / "run", [])
    (run / "metrics.jsonl").write_bytes(b"")
    _, page = read(run)
    assert "Steps 0" in page.text and "could not be read" not in page.text


@pytest.mark.parametrize(
    "tail",
    ['{"step": 122, "lo', "[1, 2]\n", "12\n", '{"step": "x"}\n', '{"step": null}\n', "\x00\x00\n"],
)
def test_torn_line_is_left_out_and_mentioned(tmp_path, tail):
    lines = metric_lines()[:60]
    _, page = read(make_run(tmp_path / "run", lines, tail=tail))
    assert "Left out 1 line of metrics.jsonl that could not be read (line 61)" in page.text
    assert "Steps 120 ·" in page.text


def test_line_of_bytes_that_are_no_text_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", metric_lines()[:9])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 20, "loss\xff\xfe": 1}\n' + b"[" * 100_000 + b"\n")
    assert "Left out 2 lines of metrics.jsonl" in read(run)[1].text


def test_last_line_of_a_repeated_step_wins_and_time_adds_up(tmp_path):
    first = [{"step": s, "loss": 100.0 + s, "seconds": 10.0 * s} for s in range(1, 31)]
    again = [{"step": s, "loss": 1.0 + s, "seconds": 10.0 * (s - 20)} for s in range(21, 41)]
    source, page = read(make_run(tmp_path / "run", first + again))
    assert "The run was resumed: 10 steps from step 21 on were logged again" in page.text
    assert "Wall time 8 min 20 s" in page.text
    hover = [t.text for t in chart(source, "Loss").iter("title")]
    assert "step 25: 26" in hover and "step 20: 120" in hover and len(hover) == 40


def test_step_split_over_two_lines_is_no_resume(tmp_path):
    lines = []
    for line in metric_lines()[:60]:
        health = {k: line.pop(k) for k in list(line) if k.startswith("health/")}
        lines += [line, {"step": line["step"], **health}] if health else [line]
    source, page = read(make_run(tmp_path / "run", lines))
    assert "resumed" not in page.text and {"Loss", "RankMe"} <= set(titles(source))


def test_values_that_are_not_finite_leave_gaps_and_are_counted(tmp_path):
    lines = [{"step": s, "loss": 1.0 / s, "grad_norm": math.nan} for s in range(1, 31)]
    for s, value in (
        (10, math.nan),
        (11, math.inf),
        (13, -math.inf),
        (20, 10**400),
        (30, math.nan),
    ):
        lines[s - 1]["loss"] = value
    source, page = read(make_run(tmp_path / "run", lines))
    assert "loss 5 (first at step 10), grad_norm 30 (first at step 1)" in page.text
    assert "Loss not finite" in page.text
    assert "No finite value was logged" in page.text
    data = chart(source, "Loss").find("svg/path").get("d")
    assert data.count("M") == 4 and data.count("h0") == 1


def test_values_at_the_ends_of_floating_point_are_drawn(tmp_path):
    values = [1e-310, -1e299, 1e299, 5e-324, 0.0, 1e308, -0.0]
    lines = [{"step": s, "loss": v, "tiny": 5e-324 * (s % 2), "flat": 3.0} for s, v in enumerate(values)]
    source, _ = read(make_run(tmp_path / "run", lines))
    assert {"Loss", "tiny", "flat"} <= set(titles(source))
    assert len(labels(chart(source, "flat"), "y")) >= 2


def test_rates_are_medians_and_shares_are_percent(tmp_path):
    speeds, waits = [10.0, 100.0, 104.0, 9000.0], [0.01, 0.02, 0.04, math.nan]
    lines = [
        {"step": s, "images_per_second": a, "data_wait": b} for s, (a, b) in enumerate(zip(speeds, waits, strict=True))
    ]
    source, page = read(make_run(tmp_path / "run", lines))
    assert "Samples per second 102 data wait 2 %" in page.text
    assert "Time spent waiting for data not finite Time" not in page.text
    assert "Time spent waiting for data not finite" in page.text and "finite %" not in page.text
    assert [t.text for t in chart(source, "Time spent waiting for data").iter("title")] == [
        "step 0: 1 %",
        "step 1: 2 %",
        "step 2: 4 %",
    ]


def test_smoothed_line_begins_and_ends_where_a_straight_curve_does(tmp_path):
    lines = [{"step": s, "loss": 3.0 - s / 300} for s in range(601)]
    source, _ = read(make_run(tmp_path / "run", lines))
    raw, line = (
        [float(y) for y in re.findall(r"[ML]\d+ (\d+)", p.get("d"))] for p in chart(source, "Loss").iter("path")
    )
    one_step = 10_000 / 600
    assert abs(raw[0] - line[0]) < 4 * one_step and abs(raw[-1] - line[-1]) < 4 * one_step


def test_axis_of_steps_begins_at_zero_unless_the_run_began_far_from_it(tmp_path):
    def first_label(run: Path) -> str:
        return labels(chart(read(run)[0], "Loss"), "x")[0]

    near = [{"step": s, "loss": 1.0} for s in range(10, 101, 10)]
    far = [{"step": s, "loss": 1.0} for s in range(90_000, 100_001, 1000)]
    assert first_label(make_run(tmp_path / "near", near)) == "0"
    assert first_label(make_run(tmp_path / "far", far)) == "90k"


def test_long_run_is_thinned_but_keeps_its_spike(tmp_path):
    lines = [{"step": s, "loss": 2 + math.sin(s), "lr": 1e-3} for s in range(1, 20_001)]
    lines[12_345]["loss"] = 9.7
    source, _ = read(make_run(tmp_path / "run", lines))
    assert len(source) < 100_000
    raw = next(p for p in chart(source, "Loss").iter("path") if p.get("class") == "raw")
    heights = [float(y) for y in re.findall(r"[ML]\d+ (\d+)", raw.get("d"))]
    assert min(heights) < 400 and len(heights) <= 1000
    assert sorted(heights)[1] > 5000


def test_thinning_keeps_gaps(tmp_path):
    lines = [{"step": s, "loss": 1.0} for s in range(1, 10_001)]
    lines[5000]["loss"] = math.nan
    source, _ = read(make_run(tmp_path / "run", lines))
    assert all(p.get("d").count("M") == 2 for p in chart(source, "Loss").iter("path"))


def test_weight_decay_is_drawn_only_if_it_varies(tmp_path):
    lines = metric_lines()[:60]
    assert "Weight decay" not in titles(read(make_run(tmp_path / "constant", lines))[0])
    for i, line in enumerate(lines):
        line["weight_decay"] = 0.04 + 0.36 * i / 60
    assert "Weight decay" in titles(read(make_run(tmp_path / "varies", lines))[0])


def test_axis_labels_differ_where_values_hardly_do(tmp_path):
    lines = [{"step": 1_000_000 + s, "momentum": 0.9999 + 1e-7 * s, "loss": 54_321 + s / 10} for s in range(50)]
    source, _ = read(make_run(tmp_path / "run", lines))
    for title in ("momentum", "Loss"):
        for axis in "xy":
            found = labels(chart(source, title), axis)
            assert len(set(found)) == len(found) >= 2


def test_wide_range_of_loss_takes_a_log_axis(tmp_path):
    lines = [{"step": s, "loss": 1000 * math.exp(-s / 5)} for s in range(1, 61)]
    source, _ = read(make_run(tmp_path / "run", lines))
    assert "Loss (log scale)" in titles(source)
    y = [float(v) for v in re.findall(r"[ML]\d+ (\d+)", chart(source, "Loss").find("svg/path").get("d"))]
    steps = [b - a for a, b in itertools.pairwise(y)]
    assert max(steps) - min(steps) <= 2


def test_loss_below_zero_stays_linear(tmp_path):
    lines = [{"step": s, "loss": -1 + math.exp(-s)} for s in range(1, 31)]
    source, _ = read(make_run(tmp_path / "run", lines))
    assert "Loss" in titles(source) and "\u2212" in labels(chart(source, "Loss"), "y")[0]


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
        ([], [], "Neither feature std nor RankMe was logged", False),
    ],
)
def test_feature_health_says_what_its_figures_mean(tmp_path, std, rankme, verdict, is_bad):
    lines = metric_lines()[:2]
    for i, line in enumerate(lines):
        line["health/knn"] = 0.5
        line |= {"health/feature_std": std[i], "health/rankme": rankme[i]} if std else {}
    source, page = read(make_run(tmp_path / "run", lines))
    assert verdict in page.text
    assert "near 0 when every input gets the same vector" in page.text
    assert ('class="verdict bad"' in source) == is_bad


def test_baseline_that_wins_is_named_as_such(tmp_path):
    rows = [{"features": "pretrained", "linear": 0.4}, {"features": "raw pixels", "linear": 0.45}]
    run = make_run(tmp_path / "run", metric_lines()[:9], evaluation={"rows": rows})
    _, page = read(run)
    assert "5.0 points below raw pixels. A baseline does as well or better" in page.text
    assert page.bold == ["45.0 %"] and "n is not stated" in page.text


def test_columns_of_other_methods_are_shown_and_perplexity_is_best_when_low(tmp_path):
    rows = [
        {"features": "pretrained", "perplexity": 21.5, "recall@1": 0.5, "linear": math.nan},
        {"features": "random init", "perplexity": 50_257, "recall@1": None},
    ]
    run = make_run(tmp_path / "run", metric_lines()[:9], evaluation={"n": 500, "rows": rows})
    _, page = read(run)
    assert page.bold == ["21.5", "50.0 %"]
    assert "50,257" in page.text and "n = 500" in page.text and "Linear probe" not in page.text


def test_interval_may_be_a_pair_of_bounds(tmp_path):
    rows = [{"features": "pretrained", "fewshot": {"mean": 0.5, "interval": [0.46, 0.54]}}]
    run = make_run(tmp_path / "run", metric_lines()[:9], evaluation={"rows": rows})
    assert "50.0 % ± 4.0" in read(run)[1].text


@pytest.mark.parametrize("rows", [None, [], "text", [1, None], [{"features": "pretrained"}]])
def test_evaluation_without_scores_counts_as_none(tmp_path, rows):
    run = make_run(tmp_path / "run", metric_lines()[:9], evaluation={"rows": rows})
    assert "Not evaluated yet" in read(run)[1].text


@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "evaluation.json", "bad_samples.json", "figures/captions.json"]
)
@pytest.mark.parametrize("content", ["{torn", '"text"', ""])
def test_file_that_cannot_be_read_is_named(tmp_path, name, content):
    run = make_run(tmp_path / "run", metric_lines()[:9])
    (run / "figures").mkdir()
    (run / name).write_text(content)
    assert f"{Path(name).name} " in read(run)[1].text


@pytest.mark.parametrize("damage", [lambda png: png[: len(png) // 2], lambda png: b"GIF89a" + png[6:], lambda _: b""])
def test_picture_that_is_not_whole_is_named_and_left_out(tmp_path, damage):
    run = make_run(tmp_path / "run", metric_lines()[:9])
    add_pictures(run)
    (run / "figures" / "captions.json").unlink()
    picture = run / "figures" / "feature_map.png"
    picture.write_bytes(damage(picture.read_bytes()))
    (run / "figures" / "folder.png").mkdir()
    source, page = read(run)
    assert "figures/feature_map.png is not a whole PNG file" in page.text
    assert source.count("<img") == 1 and "Reconstruction" in page.text


def test_facts_may_stand_in_the_metrics(tmp_path):
    lines = [{"device": "cpu", "parameters": 1234}, {"step": 1, "loss": 1.0, "parameters": 98_765}]
    source, page = read(make_run(tmp_path / "run", lines, record={"config": {"model_type": "gpt2"}}))
    for fact in ("Method gpt2", "Device cpu", "Parameters 98.77k"):
        assert fact in page.text
    assert "Data" not in page.text[: page.text.index("Training")] and titles(source) == ["Loss"]


def test_date_is_that_of_the_last_line_where_no_file_says_one(tmp_path):
    run = make_run(tmp_path / "run", metric_lines()[:9], record={"created": "yesterday"})
    os.utime(run / "metrics.jsonl", (1_700_000_000, 1_700_000_000))
    assert "Date 2023-11-14 22:13 UTC" in read(run)[1].text


def test_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ReportError, match="is not a folder: give the one that training wrote"):
        write_report(tmp_path / "absent")


def test_folder_without_metrics_is_an_error(tmp_path):
    run = make_run(tmp_path / "run", [], finished=True)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ReportError, match=r"run holds no metrics\.jsonl"):
        write_report(str(run))
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("kept", [[], ["run.json"], ["config.json"], ["run.json", "config.json"]])
def test_either_config_or_run_record_is_enough(tmp_path, kept):
    run = make_run(tmp_path / "run", metric_lines()[:9], finished=True)
    for name in {"run.json", "config.json"} - set(kept):
        (run / name).unlink()
    if kept:
        assert "Method MAE" in read(run)[1].text
    else:
        with pytest.raises(ReportError, match=r"neither config\.json nor run\.json"):
            write_report(run)


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
    code = (
        "import sys; import ssl_train.report.page; "
        "print(sorted({'torch', 'numpy', 'PIL', 'matplotlib', 'jinja2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
