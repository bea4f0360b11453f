"""What a run folder holds, as plain dataclasses.

Training writes metrics.jsonl, run.json, bad_samples.json, config.json and the weights. The verbs
`train`, `evaluate` and `show` write evaluation.json and figures/. Nothing else is read.
A file that is missing leaves its part of the page empty. So does a damaged one, and a note says so.
"""

from __future__ import annotations

import base64
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_core.errors import InputError
from ssl_core.hub.format import SECTION

Point = tuple[float, float]  # (step, value); the value is nan where the run logged nan or inf
PROTOCOLS = {"knn": "k-NN", "linear": "Linear probe", "fewshot": "Few-shot", "finetune": "Fine-tuning"}
SNAPSHOTS = "snapshots"
"""Folder of a run with what was measured of its steps, in `step-000123/evaluation.json`."""
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class ReportError(InputError):
    """The folder does not allow a report; the message says why."""


@dataclass(frozen=True)
class Score:
    """An accuracy in [0, 1]. For few-shot, `half` is half the width of its interval."""

    mean: float
    half: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json: accuracies under protocols, and the lines of the recipe's own `measure`."""

    data: str
    protocol: dict[str, Any]
    encoders: list[str]  # ours first
    columns: dict[str, dict[str, Score]]  # by the protocol's title, then by encoder
    measured_on: str
    measured: list[str]
    more: list[list[str]]  # `of_rows`
    curves: dict[str, list[tuple[float, float, float | None]]]  # `curves_of`


@dataclass(frozen=True)
class Picture:
    """One PNG of figures/, in base64."""

    caption: str
    width: int
    height: int
    data: str


@dataclass(frozen=True)
class Run:
    """Everything that the page shows."""

    name: str  # the path as the caller wrote it: the commands on the page repeat it
    folder: Path
    files: dict[str, dict[str, Any]]  # config.json and run.json, empty where they are missing
    series: dict[str, list[Point]]  # every scalar of metrics.jsonl, in order of step; [] for others
    seconds: float  # wall time, summed over resumes
    torn: list[int]  # lines of metrics.jsonl that could not be read
    repeated: list[int]  # steps that were logged again, since the run was resumed
    evaluation: Evaluation
    snapshots: list[tuple[int, Evaluation]]  # (step, what its weights score), steps rising
    pictures: list[Picture]
    bad_samples: list[tuple[str, str]]  # (name, reason)
    damaged: list[str]  # what could not be read of the other files

    @property
    def started(self) -> dict[str, Any]:
        """run.json. If it is missing, config.json still names the method and its settings."""
        return self.files["config.json"].get(SECTION, {}) | self.files["run.json"]


def finite(points: list[Point]) -> list[Point]:
    """The points whose value is finite."""
    return [point for point in points if not math.isnan(point[1])]


def read_run(run: str | Path) -> Run:
    """Read a run folder. Raises ReportError when training has not begun in it."""
    folder, damaged = Path(run), []
    if not folder.is_dir():
        raise ReportError(f"{run} is not a folder: give the one that training wrote")
    if not (folder / "metrics.jsonl").is_file():
        raise ReportError(f"{folder} holds no metrics.jsonl: give a folder in which training has begun")
    if not (folder / "config.json").is_file() and not (folder / "run.json").is_file():
        raise ReportError(f"{folder} holds neither config.json nor run.json: give the folder that training wrote")
    return Run(
        name=str(run),
        folder=folder,
        files={name: _json(folder / name, dict, {}, damaged) for name in ("config.json", "run.json")},
        **_metrics(folder / "metrics.jsonl"),
        evaluation=_json(folder / "evaluation.json", read_evaluation, {}, damaged),
        snapshots=list(_snapshots(folder / SNAPSHOTS, damaged)),
        pictures=list(_pictures(folder / "figures", damaged)),
        bad_samples=_json(folder / "bad_samples.json", _bad_samples, [], damaged),
        damaged=damaged,
    )


def _json(path: Path, parse: Callable[[Any], Any], empty: Any, damaged: list[str]) -> Any:
    """`parse` of a JSON file, or of `empty` when the file is missing or damaged."""
    if path.is_file():
        try:
            return parse(json.loads(path.read_bytes()))
        except DAMAGED as error:
            damaged.append(f"{path.name} is damaged and was left out ({type(error).__name__}: {error}).")
    return parse(empty)


def _metrics(path: Path) -> dict[str, Any]:
    """Fields of Run. If a step was logged twice, the later values count."""
    rows: dict[int, dict[str, float]] = {}
    torn, repeated = [], set()
    seconds = clock = last = 0.0
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = {key: _value(value) for key, value in json.loads(line).items()}
            step = int(entry["step"])
        except DAMAGED:
            torn.append(number)
            continue
        repeated |= {step} & rows.keys()
        rows.setdefault(step, {}).update(entry)
        # The clock counts from the start of a process, so it falls back when a run is resumed.
        now = entry.get("seconds", clock)
        seconds += now if now < clock or step <= last else now - clock
        clock, last = now, step
    series: dict[str, list[Point]] = defaultdict(list)
    for step in sorted(rows):
        for key, value in rows[step].items():
            series[key].append((step, value))
    return {"series": series, "seconds": seconds, "torn": torn, "repeated": sorted(repeated)}


def _value(value: Any) -> float:
    """The number as a float, or nan if it is no number or too large for an axis."""
    if not isinstance(value, int | float) or not abs(value) < 1e300:
        return math.nan
    return float(value) if abs(value) > 1e-300 else 0.0


def read_evaluation(content: dict[str, Any]) -> Evaluation:
    """The content of evaluation.json as a dataclass; {} gives one without figures."""
    columns: dict[str, dict[str, Score]] = defaultdict(dict)
    metric = ", AUROC" if "findings" in content.get("protocol", {}) else ""
    for key, title in PROTOCOLS.items():
        for row in content.get("rows", []):
            if isinstance(few := row.get(key), dict):
                score = Score(float(few["mean"]), float(few["interval"]))
                columns[f"{title}, {few['shots']} a class"][row["features"]] = score
            elif key in row:
                ends = row.get("intervals", {}).get(key)
                half = (ends[1] - ends[0]) / 2 if ends else None
                columns[title + metric][row["features"]] = Score(float(row[key]), half)
    measured = content.get("measured", {"of": "", "summary": []})
    return Evaluation(
        data=content.get("data", ""),
        protocol=dict(content.get("protocol", {})),
        encoders=[row["features"] for row in content.get("rows", [])],
        columns=columns,
        measured_on=measured["of"],
        measured=measured["summary"][1:],  # the first line repeats `of`
        more=of_rows(content),
        curves=curves_of(content),
    )


def of_rows(content: dict[str, Any]) -> list[list[str]]:
    """A table of cells in % from evaluation.json, its head first: of findings AUROC and average
    precision of each by our features, else what the linear probe and k-NN have besides top-1. []
    without either."""
    rows = content.get("rows", [])
    protocol = content.get("protocol", {})
    if "findings" in protocol:
        linear = next((row["details"]["linear"] for row in rows if "linear" in row), None)
        if linear is None:
            return []
        head = ["finding", "positive", "AUROC", "average precision"]
        each = [[name, f"{facts['positive']:,}", *_two(facts)] for name, facts in linear["each"].items()]
        return [head, *each, ["mean", "", *_two(linear)]]
    titles = {"mean_per_class": "balanced", "macro_f1": "macro F1", "auroc": "AUROC", "average_precision": "AP"}
    table = []
    for row in rows:
        details, cells = row.get("details", {}), [row["features"]]
        neighbours = details.get("knn", {}).get(str(protocol.get("knn", {}).get("k")), {})
        cells += [_cell(neighbours.get(key)) for key in list(titles)[:2]]
        table.append([*cells, *(_cell(details.get("linear", {}).get(key)) for key in titles)])
    head = ["features", *(f"k-NN {title}" for title in list(titles.values())[:2]), *titles.values()]
    return [head, *table] if any(cell != "–" for cells in table for cell in cells[1:]) else []


def _two(facts: dict[str, Any]) -> list[str]:
    return [_cell(facts["auroc"]), _cell(facts["average_precision"])]


def _cell(value: Any) -> str:
    """A share, or {"mean", "interval"}, in %."""
    facts = value if isinstance(value, dict) else {"mean": value}
    if facts["mean"] is None:
        return "–"
    ends = facts.get("interval")
    return f"{100 * facts['mean']:.1f}" + (" ({:.1f}–{:.1f})".format(*(100 * end for end in ends)) if ends else "")


def curves_of(content: dict[str, Any]) -> dict[str, list[tuple[float, float, float | None]]]:
    """(share of the labels, figure, half of its interval) of every encoder that has a curve."""
    rows = {row["features"]: row.get("details", {}).get("curve", []) for row in content.get("rows", [])}
    found = {
        name: [(point["share"], point["mean"], point["interval"]) for point in points if point["mean"] is not None]
        for name, points in rows.items()
    }
    return {name: points for name, points in found.items() if points}


def _snapshots(folder: Path, damaged: list[str]) -> Iterator[tuple[int, Evaluation]]:
    steps = {int(path.name[5:]): path for path in folder.glob("step-*") if path.name[5:].isdigit()}
    for step in sorted(steps):
        evaluation = _json(steps[step] / "evaluation.json", read_evaluation, {}, damaged)
        if evaluation.columns:
            yield step, evaluation


def _pictures(folder: Path, damaged: list[str]) -> Iterator[Picture]:
    """The figures: first those with a caption, in the order of captions.json, then the others."""
    captions = _json(folder / "captions.json", dict, {}, damaged)
    there = sorted(path.name for path in folder.glob("*.png") if path.is_file())
    for name in dict.fromkeys([*captions, *there]):
        if name not in there:
            continue
        data = (folder / name).read_bytes()
        if not data.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in data[-16:]:
            damaged.append(f"figures/{name} is not a whole PNG file and was left out.")
            continue
        # The header of a PNG holds the width and the height right after its signature and type.
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        default = name.removesuffix(".png").replace("_", " ").capitalize()
        yield Picture(captions.get(name, default), width, height, base64.b64encode(data).decode())


def _bad_samples(content: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(sample["name"], sample["reason"]) for sample in content]
