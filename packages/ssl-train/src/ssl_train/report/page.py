"""The HTML report of a run: one file that opens offline, prints, and needs no JavaScript.

`write_report` reads a run folder and writes nothing but its `report.html`. Any method may log any
scalar: what this page has no place for gets a small curve of its own. Two figures say whether
features are alive: their standard deviation (SimSiam, Chen & He, arXiv 2011.10566, section 4.1)
and RankMe, the exponential of the entropy of their singular values (Garrido et al., arXiv
2210.02885, equation 1).
"""

from __future__ import annotations

import base64
import datetime
import html
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_core.errors import InputError

Point = tuple[float, float]  # (step, value); the value is nan where the run logged nan or inf
Score = tuple[float, float]  # (mean, half width of its interval, nan without one)

FEATURE_STD = ("health/feature_std", "feature_std")
RANKME = ("health/rankme", "rankme")
KNN = ("health/knn", "knn")
BOOKKEEPING = {"step", "epoch", "seconds", "parameters"}  # never a curve
PLACED = {"loss", "lr", "weight_decay", "grad_norm", "images_per_second", "data_wait"}
PLACED |= BOOKKEEPING | {*FEATURE_STD, *RANKME, *KNN}
COLUMNS = {"knn": "k-NN", "linear": "Linear probe", "fewshot": "Few-shot", "finetune": "Fine-tuning"}
NO_COLUMNS = {"n", "seed", "seconds", "dim"}
LOWER_IS_BETTER = re.compile(r"loss|perplexity|error|rank$|bits|mse")
NOT_XML = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
BAD_SAMPLES_SHOWN = 200
BUILT_IN = "built-in"  # what run.json calls the data of a run without --data


class ReportError(InputError):
    """A folder that no report can be made of; the message says why."""


@dataclass(frozen=True)
class _Run:
    name: str  # the path as the caller wrote it: the commands on the page repeat it
    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]  # run.json: what the run was started with
    rows: list[dict[str, Any]]  # one a step, in order of step
    facts: dict[str, Any]  # what metrics.jsonl holds besides scalars over steps
    seconds: float  # wall time, summed over resumes
    evaluation: dict[str, Any]
    captions: dict[str, Any]
    bad_samples: list[Any]
    notes: list[str]  # what the reader has to know about these files

    def find(self, *keys: str) -> Any:
        """The text or number under one of `keys` in any of the files; None if there is none."""
        return _find({"metrics": self.facts, "run": self.record, "config": self.config}, *keys)

    @property
    def title(self) -> str:
        return self.folder.resolve().name

    @property
    def is_finished(self) -> bool:
        return (self.folder / "model.safetensors").is_file()

    def series(self, *keys: str) -> list[Point]:
        """(step, value) of every row that has one of `keys`."""
        points = []
        for row in self.rows:
            value = next((row[key] for key in keys if _is_scalar(row.get(key))), None)
            if value is not None:
                points.append((_float(row["step"]), _float(value)))
        return points


def write_report(run: str | Path) -> Path:
    """Write `report.html` into a run folder, replacing it in one step, and return its path.

    The bytes depend on the folder and on `run` as written, on nothing else. A run in progress, a
    torn line of metrics.jsonl, values that are not finite and optional files that cannot be read
    give a page that says so.

    Raises ReportError when the folder or its metrics.jsonl is missing, and when there is neither a config.json, which
    training writes with the weights, nor a run.json, which it writes at its start.
    """
    page = _page(_read(run))
    path = Path(run) / "report.html"
    beside = path.with_name(f".report.{os.getpid()}.tmp")
    try:
        beside.write_text(page, encoding="utf-8", newline="\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _read(run: str | Path) -> _Run:
    folder, notes = Path(run), []
    if not folder.is_dir():
        raise ReportError(f"{run} is not a folder: give the one that training wrote")
    if not (folder / "metrics.jsonl").is_file():
        raise ReportError(f"{folder} holds no metrics.jsonl: give a folder in which training has begun")
    if not (folder / "config.json").is_file() and not (folder / "run.json").is_file():
        raise ReportError(f"{folder} holds neither config.json nor run.json: give the folder that training wrote")
    rows, facts, seconds = _read_metrics(folder / "metrics.jsonl", notes)
    return _Run(
        name=str(run),
        folder=folder,
        config=_read_optional(folder / "config.json", dict, notes),
        record=_read_optional(folder / "run.json", dict, notes),
        rows=rows,
        facts=facts,
        seconds=seconds,
        evaluation=_read_optional(folder / "evaluation.json", dict, notes),
        captions=_read_optional(folder / "figures" / "captions.json", dict, notes),
        bad_samples=_read_optional(folder / "bad_samples.json", list, notes),
        notes=notes,
    )


def _read_optional(path: Path, kind: type, notes: list[str]) -> Any:
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} is not JSON and was left out: {error}.")
        return kind()
    if not isinstance(value, kind):
        notes.append(f"{path.name} does not hold a {kind.__name__} and was left out.")
        return kind()
    return value


def _read_metrics(path: Path, notes: list[str]) -> tuple[list[dict], dict[str, Any], float]:
    """Rows by step, facts and seconds; of a step that is logged again the later values win."""
    rows: dict[float, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    torn, repeated = [], set()
    seconds = clock = last = 0.0
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        entry, step = _read_line(line)
        if math.isnan(step):
            torn += [number] if line.strip() else []
            continue
        if "step" not in entry:
            facts |= entry
            continue
        facts |= {k: v for k, v in entry.items() if isinstance(v, str) or k == "parameters"}
        row = rows.setdefault(step, {})
        # A step may be logged in several lines of different keys; the same key says "resumed".
        if row.keys() & entry.keys() - BOOKKEEPING:
            repeated.add(step)
        row.update(entry)
        # The clock counts from the start of a process, so it falls back when a run is resumed.
        now = _float(entry.get("seconds"))
        if not math.isnan(now):
            seconds += now - clock if now >= clock and step >= last else now
            clock, last = now, step
    notes.extend(_notes_on_lines(torn, repeated))
    return [rows[step] for step in sorted(rows)], facts, seconds


def _notes_on_lines(torn: list[int], repeated: set[float]) -> Iterator[str]:
    if torn:
        lines = ", ".join(map(str, torn[:5])) + (", …" if len(torn) > 5 else "")
        yield (
            f"Left out {_plural(len(torn), 'line')} of metrics.jsonl that could not be read (line "
            f"{lines}). A run that is killed while it writes leaves such a line."
        )
    if repeated:
        yield (
            f"The run was resumed: {_plural(len(repeated), 'step')} from step "
            f"{_number(min(repeated))} on were logged again; the later values are shown."
        )


def _read_line(line: bytes) -> tuple[dict[str, Any], float]:
    """A line and its step: 0 where it names none, nan where it is not a line of metrics."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}, math.nan
    return (entry, _float(entry.get("step", 0))) if isinstance(entry, dict) else ({}, math.nan)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: Any) -> float:
    """A number as a float; nan for anything else, and for what would overflow an axis."""
    if not _is_scalar(value) or not abs(value) < 1e300:
        return math.nan
    return float(value) if abs(value) > 1e-300 else 0.0


def _finite(points: list[Point]) -> list[Point]:
    return [point for point in points if not math.isnan(point[1])]


def _find(tree: dict, *keys: str) -> Any:
    """The text or number under one of `keys` nearest to the root; None if there is none."""
    nodes = [tree]
    for node in nodes:
        for key in keys:
            if isinstance(node.get(key), str | int | float) and node[key] != "":
                return node[key]
        nodes.extend(child for child in node.values() if isinstance(child, dict))
    return None


def _text(value: Any) -> str:
    """Escape for HTML and XML; a character that XML cannot hold becomes U+FFFD."""
    return html.escape(NOT_XML.sub("\ufffd", str(value)))


def _number(value: float, digits: int = 4) -> str:
    if math.isnan(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e15:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    is_whole = value == int(value) or (digits == 4 and abs(value) >= 1000)
    return (f"{value:,.0f}" if is_whole else f"{value:,.{digits}g}").replace("-", "\u2212")


def _labels(values: list[float]) -> list[str]:
    """Labels in one unit (12k, 3.5M) with as many digits as it takes to tell them apart."""
    top = max(map(abs, values), default=0.0)
    units = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (0.0, 1.0, ""))
    unit, suffix = next((u, s) for floor, u, s in units if floor <= top < 1e15 or not floor)
    labels = []
    for digits in range(4, 13):
        labels = [_number(v / unit, digits) + (suffix if v else "") for v in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def _scalar(value: Any) -> str:
    return _number(_float(value)) if _is_scalar(value) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _measure(value: float, unit: str) -> str:
    """A number with its unit; measured shares do not deserve a fourth digit."""
    if math.isnan(value) or not unit:
        return _number(value)
    return _number(float(f"{value:.3g}")) + unit


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` numbers, 1, 2 or 5 times a power of ten apart, that enclose [low, high]."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(high) / 10 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _smooth(points: list[Point]) -> list[Point]:
    """Centred moving mean over a thirtieth of the points, taken twice so that it has no corners."""
    values = [value for _, value in _finite(points)]
    count, half = len(values), max(1, len(values) // 60)
    for _ in range(2):
        total = list(itertools.accumulate(values, initial=0.0))
        values = []
        for i in range(count):
            # Near an end the window narrows on both sides, or it would bend the curve there.
            low = max(0, i - half, 2 * i + 1 - count - half // 3)
            high = min(count, i + half + 1, 2 * i + half // 3 + 1)
            values.append((total[high] - total[low]) / (high - low))
    means = iter(values)
    return [(step, value if math.isnan(value) else next(means)) for step, value in points]


def _thin(points: list[Point], buckets: int) -> list[Point]:
    """At most three points a bucket: its extremes, so that no spike is lost, and its first gap."""
    if len(points) <= 2 * buckets:
        return points
    kept = {0, len(points) - 1}
    for b in range(buckets):
        span = range(b * len(points) // buckets, (b + 1) * len(points) // buckets)
        finite = [i for i in span if not math.isnan(points[i][1])]
        kept.update(pick(finite, key=lambda i: points[i][1]) for pick in (min, max) if finite)
        kept.update([i for i in span if math.isnan(points[i][1])][:1])
    return [points[i] for i in sorted(kept)]


@dataclass(frozen=True)
class _Frame:
    """Maps a curve to its plot, as shares of the width and, downwards, of the height."""

    left: float
    right: float
    bottom: float
    top: float
    log: bool

    def x(self, step: float) -> float:
        return (step - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        low, here, high = self.bottom, value, self.top
        if self.log:
            low, here, high = math.log(low), math.log(here), math.log(high)
        return (high - here) / (high - low)

    def path(self, points: list[Point]) -> str:
        """SVG path data in ten-thousandths; nan breaks the line, a lone point is a dot."""
        data, pen_up = [], True
        for (step, value), (_, after) in itertools.pairwise([*points, (0.0, math.nan)]):
            if not math.isnan(value):
                move, dot = "M" if pen_up else "L", "h0" if pen_up and math.isnan(after) else ""
                data.append(f"{move}{self.x(step) * 1e4:.0f} {self.y(value) * 1e4:.0f}{dot}")
            pen_up = math.isnan(value)
        return "".join(data)


def _chart(
    title: str,
    points: list[Point],
    span: tuple[float, float],
    *,
    size: str = "",
    unit: str = "",
    zero: bool = False,
    log: bool = False,
    smooth: bool = True,
) -> str:
    """One curve over the steps `span` as a figure, nothing if it was never logged.

    `size` is "", "wide", "third" or "small"; `zero` puts 0 on the value axis; `log` takes a
    logarithmic axis where the values span more than a factor of 100.
    """
    finite = _finite(points)
    if not finite:
        nothing = '<p class="none">No finite value was logged.</p>'
        return _figure(title, "", size, nothing) if points else ""
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    log = log and 0 < 100 * low < high
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [10.0**d for d in decades]
    else:
        ticks = _round_numbers(min(low, 0.0) if zero else low, high, 2 if size == "small" else 4)
    frame = _Frame(*span, ticks[0], ticks[-1], log)
    last = _measure(points[-1][1], unit)
    label = f"{title} from {_number(finite[0][1])} at step {_number(finite[0][0])} to {last}"
    svg = (
        f'<svg class="plot" role="img" aria-label="{_text(label)}">'
        + _axes(frame, ticks, unit, {"wide": 8, "": 6, "third": 4}.get(size, 3))
        + _lines(frame, points, smooth and len(finite) >= 40, 300 if size == "wide" else 120)
        + _hover(frame, finite, unit, 80 if size == "wide" else 32)
        + "</svg>"
    )
    detail = f"lowest {_number(low)} · last {last}" if size == "wide" else last
    return _figure(title + (" (log scale)" if log else ""), detail, size, svg)


def _figure(title: str, detail: str, size: str, body: str) -> str:
    caption = f"<figcaption><b>{_text(title)}</b> <span>{_text(detail)}</span></figcaption>"
    return f'<figure class="chart {size}">{caption}{body}</figure>'


def _axes(frame: _Frame, ticks: list[float], unit: str, count: int) -> str:
    rules, labels = "", ""
    ticks = ticks[:: math.ceil(len(ticks) / 7)]
    # Decades in one unit would read 0.001k, 0.01k, …
    names = [_labels([tick])[0] for tick in ticks] if frame.log else _labels(ticks)
    for tick, name in zip(ticks, names, strict=True):
        y = f"{frame.y(tick):.2%}"
        rules += f'<line x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        labels += f'<text class="y" x="0" y="{y}" dx="-8" dy="4">{name}{unit}</text>'
    steps = _round_numbers(frame.left, frame.right, count)
    steps = [s for s in steps if frame.left <= s <= frame.right and s.is_integer()]
    for tick, name in zip(steps, _labels(steps), strict=True):
        labels += f'<text class="x" x="{frame.x(tick):.2%}" y="100%" dy="18">{name}</text>'
    labels += '<text class="y" x="0" y="100%" dx="-14" dy="18">step</text>'
    return f'<g class="grid">{rules}</g><g class="labels">{labels}</g>'


def _lines(frame: _Frame, points: list[Point], smooth: bool, buckets: int) -> str:
    curves = [("line", points)]
    if smooth:
        logs = [(step, math.log(v) if frame.log else v) for step, v in points]
        means = [(step, math.exp(v) if frame.log else v) for step, v in _smooth(logs)]
        curves = [("raw", points), ("line", means)]
    paths = "".join(f'<path class="{c}" d="{frame.path(_thin(p, buckets))}"/>' for c, p in curves)
    step, value = _finite(curves[-1][1])[-1]
    # The outer SVG has no viewBox, so that text keeps its size at any width: only lines stretch.
    return (
        f'<svg viewBox="0 0 10000 10000" preserveAspectRatio="none">{paths}</svg>'
        f'<circle class="end" r="3.5" cx="{frame.x(step):.2%}" cy="{frame.y(value):.2%}"/>'
    )


def _hover(frame: _Frame, points: list[Point], unit: str, most: int) -> str:
    """Strips that name a point and its value while the pointer is over them."""
    count = min(most, len(points))
    chosen = [points[i * (len(points) - 1) // max(1, count - 1)] for i in range(count)]
    xs = [frame.x(step) for step, _ in chosen]
    edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(xs)), 1.0]
    strips = ""
    for (step, value), x, a, b in zip(chosen, xs, edges[:-1], edges[1:], strict=True):
        strips += (
            f"<g><title>step {_number(step)}: {_measure(value, unit)}</title>"
            f'<rect x="{a:.2%}" width="{b - a:.2%}" height="100%"/>'
            f'<circle r="3.5" cx="{x:.2%}" cy="{frame.y(value):.2%}"/></g>'
        )
    return f'<g class="hover">{strips}</g>'


def _as_percent(points: list[Point]) -> tuple[list[Point], str]:
    """Shares as percentages with their unit; values that are no shares as they are."""
    if all(0 <= value <= 1 for _, value in _finite(points)):
        return [(step, 100 * value) for step, value in points], " %"
    return points, ""


def _span(rows: list[dict]) -> tuple[float, float]:
    """First and last step of the axes, which begin at 0 unless the run began far from it."""
    if not rows:
        return 0.0, 1.0
    first, last = _float(rows[0]["step"]), _float(rows[-1]["step"])
    if 0 <= first < 0.2 * last or 0 < first == last:
        first = 0.0
    return first, last if last > first else first + 1.0


def _page(run: _Run) -> str:
    span = _span(run.rows)
    sections = {
        "Training": _training(run, span),
        "Evaluation": _evaluation(run),
        "Pictures": _pictures(run),
        "Feature health": _health(run, span),
        "More": _more(run, span),
        "Bad samples": _bad_samples(run),
        "Go on": _go_on(run),
        "Configuration": _configuration(run),
    }
    body = "\n".join(
        f"<section><h2>{title}</h2><div>{content}</div></section>" for title, content in sections.items() if content
    )
    # Nothing may be loaded and no script may run, whatever the files of the run hold.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(run.title)} · {_text(_method(run))}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_header(run)}\n{_tiles(run)}\n{_notes(run)}\n{body}\n</main>\n</body>\n</html>\n"
    )


def _method(run: _Run) -> str:
    return str(run.find("method") or run.find("model_type") or "run").rpartition(":")[2]


def _header(run: _Run) -> str:
    mark, state = ("done", "Finished") if run.is_finished else ("open", "In progress or stopped")
    items = "".join(f"<div><dt>{k}</dt><dd>{_text(v)}</dd></div>" for k, v in _facts(run) if v)
    return f'<header><p class="state {mark}">{state}</p><h1>{_text(run.title)}</h1><dl>{items}</dl></header>'


def _facts(run: _Run) -> Iterator[tuple[str, str]]:
    last = run.rows[-1] if run.rows else {}
    yield "Method", _method(run)
    yield "Data", str(run.find("data") or "")
    yield "Date", _date(run)
    epoch, epochs = _float(last.get("epoch")), _float(run.find("epochs"))
    passes = "" if math.isnan(epoch) else f" · epoch {epoch:.4g}"
    passes += f" of {epochs:.4g}" if passes and not math.isnan(epochs) else ""
    yield "Steps", _number(_float(last.get("step", 0))) + passes
    yield "Device", str(run.find("device") or "")
    yield "Wall time", _duration(run.seconds) if run.seconds else ""
    parameters = _float(run.find("parameters"))
    yield "Parameters", "" if math.isnan(parameters) else _labels([parameters])[0]


def _date(run: _Run) -> str:
    """When the run was started or, where no file says so, when it last logged a step."""
    written = str(run.find("created", "date") or "")
    try:
        date = datetime.datetime.fromisoformat(written)
    except ValueError:
        logged = (run.folder / "metrics.jsonl").stat().st_mtime
        date = datetime.datetime.fromtimestamp(logged, datetime.UTC)
    return date.strftime("%Y-%m-%d %H:%M %Z").strip()


def _tiles(run: _Run) -> str:
    tiles = []
    loss = run.series("loss")
    if loss:
        step, value = [*_finite(loss), *loss][0]
        beside = f"from {_number(value)} at step {_number(step)}" if len(loss) > 1 else "first step"
        tiles.append(("Loss", _number(loss[-1][1]), beside))
    names, columns = _scores(run)
    for column in columns[:3]:
        ours, other = [*column.scores, None][:2]
        if ours:
            beside = f"{names[1]} {column.show(other[0])}" if other else names[0]
            tiles.append((column.title, column.show(ours[0]), beside))
    knn, unit = _as_percent(run.series(*KNN))
    if knn and not columns:
        tiles.append(("k-NN", _measure(knn[-1][1], unit), f"at step {_number(knn[-1][0])}"))
    std, rankme = run.series(*FEATURE_STD), run.series(*RANKME)
    if rankme:
        beside = f"feature std {_number(std[-1][1])}" if std else "directions in use"
        tiles.append(("RankMe", _number(rankme[-1][1]), beside))
    speed, wait = _finite(run.series("images_per_second")), _finite(run.series("data_wait"))
    if speed:
        shares, unit = _as_percent(wait)
        beside = f"data wait {_measure(_median(shares), unit)}" if wait else "median"
        tiles.append(("Images per second", _labels([float(f"{_median(speed):.3g}")])[0], beside))
    cells = "".join(
        f"<div><dt>{_text(title)}</dt><dd>{_text(value)}</dd><dd>{_text(beside)}</dd></div>"
        for title, value, beside in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def _median(points: list[Point]) -> float:
    values = sorted(value for _, value in points)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _notes(run: _Run) -> str:
    notes = list(run.notes)
    if not run.rows:
        notes.insert(0, "No step has been logged yet.")
    gaps = {key: [p for p in run.series(key) if math.isnan(p[1])] for key in _keys(run)}
    lost = [f"{k} {len(g):,} (first at step {_number(g[0][0])})" for k, g in gaps.items() if g]
    if lost:
        notes.append(f"Values that are not finite leave gaps in the curves: {', '.join(lost)}.")
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _keys(run: _Run) -> list[str]:
    """Every key that holds a number on some line, in the order of its first line."""
    keys = dict.fromkeys(k for row in run.rows for k, v in row.items() if _is_scalar(v))
    return [key for key in keys if key not in BOOKKEEPING]


def _training(run: _Run, span: tuple[float, float]) -> str:
    decay = run.series("weight_decay")
    if len({value for _, value in decay}) < 2:
        decay = []
    wait, unit = _as_percent(run.series("data_wait"))
    speed = run.series("images_per_second")
    charts = [
        _chart("Loss", run.series("loss"), span, size="wide", log=True),
        _chart("Learning rate", run.series("lr"), span, zero=True, smooth=False),
        _chart("Weight decay", decay, span, smooth=False),
        _chart("Gradient norm", run.series("grad_norm"), span, zero=True, log=True),
        _chart("Images per second", speed, span, zero=True),
        _chart("Time spent waiting for data", wait, span, zero=True, unit=unit),
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


@dataclass(frozen=True)
class _Column:
    """One column of the evaluation table with a score, or None, for each row."""

    key: str
    title: str
    scores: list[Score | None]

    @property
    def lower_is_better(self) -> bool:
        return bool(LOWER_IS_BETTER.search(self.key))

    @property
    def is_share(self) -> bool:
        return not self.lower_is_better and all(0 <= s[0] <= 1 for s in self.scores if s)

    def show(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.is_share else _number(value)

    def cell(self, score: Score | None) -> str:
        if score is None:
            return "<td>–</td>"
        means = [s[0] for s in self.scores if s]
        full = 1.0 if self.is_share else max(map(abs, means)) or 1.0
        mean, half = score
        is_best = mean == (min if self.lower_is_better else max)(means)
        value = f"<b>{self.show(mean)}</b>" if is_best else self.show(mean)
        bar = f'<rect width="{_share(mean / full)}" height="100%"/>'
        if not math.isnan(half):
            spread = f"{100 * half:.1f}" if self.is_share else _number(half)
            value += f" <small>± {spread}</small>"
            low, high = _share((mean - half) / full), _share((mean + half) / full)
            bar += f'<line x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        return f'<td>{value}<svg class="bar" aria-hidden="true">{bar}</svg></td>'


def _share(value: float) -> str:
    return f"{min(1.0, max(0.0, value)):.1%}"


def _scores(run: _Run) -> tuple[list[str], list[_Column]]:
    """Names of the rows of evaluation.json, and its columns, those of COLUMNS first."""
    rows = run.evaluation.get("rows")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    columns = []
    for key in dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)]):
        scores = [_score(row.get(key)) for row in rows]
        if any(scores) and key not in NO_COLUMNS:
            shots = next(filter(None, (_dict(row.get(key)).get("shots") for row in rows)), None)
            title = COLUMNS.get(key, key) + (f", {shots} a class" if shots else "")
            columns.append(_Column(key, title, scores))
    return [str(row.get("features", "unnamed")) for row in rows], columns


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _score(value: Any) -> Score | None:
    """A number, or {"mean", "interval"} whose interval is a half width or a pair of bounds."""
    half = _dict(value).get("interval")
    if isinstance(half, list) and len(half) == 2:
        half = (_float(half[1]) - _float(half[0])) / 2
    mean = _float(_dict(value).get("mean", value))
    return None if math.isnan(mean) else (mean, _float(half))


def _evaluation(run: _Run) -> str:
    names, columns = _scores(run)
    if not columns:
        return "<p>Not evaluated yet: the first command under “Go on” does it.</p>"
    head = "".join(f"<th>{_text(column.title)}</th>" for column in columns)
    body = ""
    for i, name in enumerate(names):
        cells = "".join(column.cell(column.scores[i]) for column in columns)
        body += f"<tr><th>{_text(name)}</th>{cells}</tr>"
    protocol = _dict(run.evaluation.get("protocol"))
    settings = "\n".join(f"{key}: {value}" for key, value in _leaves(protocol))
    details = f"<details><summary>Protocol</summary><pre>{_text(settings)}</pre></details>"
    return (
        f'{_verdict(names, columns)}<div class="scroll"><table><thead><tr><th>Features</th>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="fine">{_text(_measured_on(run, columns))}</p>'
        + (details if settings else "")
    )


def _measured_on(run: _Run, columns: list[_Column]) -> str:
    protocol = _dict(run.evaluation.get("protocol"))
    test, train = (_dict(protocol.get(part)).get("n") for part in ("test", "train"))
    test = test or _find(run.evaluation, "n", "n_test")
    sizes = [f"n = {_scalar(test)}" if test else "n is not stated"]
    sizes += [f"{_scalar(train)} samples to learn from"] if train else []
    where = f"Measured on {run.evaluation['data']}, " if run.evaluation.get("data") else ""
    text = f"{where}{', '.join(sizes)}. The best of each column is bold."
    if any(score and not math.isnan(score[1]) for column in columns for score in column.scores):
        stated = _dict(protocol.get("fewshot")).get("interval")
        text += f" ± is the {stated or 'interval of the mean over draws'}."
    return text


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their path; of a long or nested list only how long it is."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key} ")
        elif isinstance(value, list) and (len(value) > 12 or any(isinstance(v, list | dict) for v in value)):
            yield f"{above}{key}", f"{len(value)} values"
        else:
            yield f"{above}{key}", ", ".join(map(_scalar, value if isinstance(value, list) else [value]))


def _verdict(names: list[str], columns: list[_Column]) -> str:
    """What the first row, ours, gains over each baseline, on the linear probe if there is one."""
    column = next((c for c in columns if c.key == "linear"), columns[0])
    (_, ours), *others = zip(names, column.scores, strict=True)
    gains = [(name, 100 * (ours[0] - score[0])) for name, score in others if ours and score]
    if not column.is_share or not gains:
        return ""
    parts = [f"{abs(g):.1f} points {'below' if g < 0 else 'above'} {name}" for name, g in gains]
    lost = any(gain <= 0 for _, gain in gains)
    advice = " A baseline does as well or better: train longer, or on more data." if lost else ""
    text = f"{column.title} on {names[0]} features: {', '.join(parts)}.{advice}"
    return f'<p class="verdict{" bad" if lost else ""}">{_text(text)}</p>'


def _pictures(run: _Run) -> str:
    figures = ""
    order = {name: i for i, name in enumerate(run.captions)}
    paths = sorted(p for p in (run.folder / "figures").glob("*.png") if p.is_file())
    for path in sorted(paths, key=lambda p: order.get(p.name, len(order))):
        data = path.read_bytes()
        if not data.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in data[-16:]:
            run.notes.append(f"figures/{path.name} is not a whole PNG file and was left out.")
            continue
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        default = path.stem.replace("_", " ").replace("-", " ").capitalize()
        caption = _text(run.captions.get(path.name) or run.captions.get(path.stem) or default)
        kind = "wide" if width > 560 else ""
        figures += (
            f'<figure class="{kind}"><img width="{width}" height="{height}" alt="{caption}" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="pictures">{figures}</div>' if figures else ""


def _health(run: _Run, span: tuple[float, float]) -> str:
    std, rankme = run.series(*FEATURE_STD), run.series(*RANKME)
    knn, unit = _as_percent(run.series(*KNN))
    charts = [
        _chart("Feature std", std, span, zero=True, size="third"),
        _chart("RankMe", rankme, span, zero=True, size="third"),
        _chart("k-NN accuracy", knn, span, zero=True, unit=unit, size="third"),
    ]
    if not any(charts):
        return "<p>No figures of feature health have been logged yet.</p>"
    alarm = _alarm(std, rankme, watched=bool(run.record.get("can_collapse", True)))
    good = "The last values show no sign of collapse."
    verdict = alarm or (good if std or rankme else "Neither feature std nor RankMe was logged.")
    return (
        f'<p class="verdict{" bad" if alarm else ""}">{_text(verdict)}</p>'
        "<p>Feature std says how far apart the features of different inputs lie: about 1 when they point everywhere, "
        "near 0 when every input gets the same vector. RankMe counts the directions that features use, from 1 to their "
        "dimension: near 1, they lie on one line. Either is collapse, and the loss alone does not show it.</p>"
        f'<div class="charts thirds">{"".join(charts)}</div>'
    )


def _alarm(std: list[Point], rankme: list[Point], *, watched: bool) -> str:
    """What the last figures of health say is wrong; nothing if they look healthy.

    A method that cannot collapse is not `watched`: its features may be narrower than the untrained network's.
    """
    figures = [(name, points) for name, points in (("feature std", std), ("RankMe", rankme)) if points]
    for name, points in figures:
        if math.isnan(points[-1][1]):
            return f"The last {name} is not finite: the features hold nan or inf."
    last = ", ".join(f"{name} {_number(points[-1][1])}" for name, points in figures)
    if (std and std[-1][1] < 0.01) or (rankme and rankme[-1][1] < 1.2):
        return f"The features have collapsed: {last}."
    # The bounds of the watch during training. One figure alone may fall without harm.
    if watched and len(figures) == 2 and std[-1][1] < 0.3 * std[0][1] and rankme[-1][1] < 0.5 * rankme[0][1]:
        began = ", ".join(f"{name} {_number(points[0][1])}" for name, points in figures)
        return f"The features are collapsing: {last}; the run began at {began}."
    return ""


def _more(run: _Run, span: tuple[float, float]) -> str:
    groups: dict[str, str] = {}
    for key in sorted(set(_keys(run)) - PLACED):
        group, _, name = key.rpartition("/")
        chart = _chart(name, run.series(key), span, size="small")
        groups[group] = groups.get(group, "") + chart
    return "".join(
        (f"<h3>{_text(group)}</h3>" if group else "") + f'<div class="charts small">{charts}</div>'
        for group, charts in sorted(groups.items())
    )


def _bad_samples(run: _Run) -> str:
    count = len(run.bad_samples)
    if not count:
        return ""
    rows = ""
    for sample in run.bad_samples[:BAD_SAMPLES_SHOWN]:
        sample = sample if isinstance(sample, dict) else {"name": sample}
        name, reason = sample.get("name", "unnamed"), sample.get("reason", "no reason given")
        rows += f"<tr><td><code>{_text(name)}</code></td><td>{_text(reason)}</td></tr>"
    more = f", the first {BAD_SAMPLES_SHOWN} here" if count > BAD_SAMPLES_SHOWN else ""
    return (
        f"<p>{_plural(count, 'sample')} could not be read{more}. Each was replaced by another "
        f'sample.</p><table class="list"><thead><tr><th>Sample</th><th>Reason</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _go_on(run: _Run) -> str:
    found = re.fullmatch(r"(\w+)[\w.]*:(\w+)", str(run.find("method")))
    if found is None:
        return "<p>config.json does not name the method's class, so there is no command to show.</p>"
    (module, name), folder, data = found.groups(), shlex.quote(run.name), run.find("data")
    command = module.replace("_", "-")
    source = f" --data {shlex.quote(str(data))}" if data and data != BUILT_IN else ""
    shell = f"{command} evaluate {folder}{source}\n{command} embed {folder} --data your/folder --out features.npz"
    python = (
        f"from {module} import {name}\n"
        f"model = {name}.from_pretrained({json.dumps(run.name, ensure_ascii=False)})\n"
        "features = model.encode(inputs)  # (b, d)"
    )
    wait = "" if run.is_finished else "<p>These need the weights, which training writes at its end.</p>"
    return f"{wait}<pre><code>{_text(shell)}</code></pre><pre><code>{_text(python)}</code></pre>"


def _configuration(run: _Run) -> str:
    files = {"config.json": run.config, "run.json": run.record}
    return "".join(
        f"<details><summary>{name}</summary><pre><code>{_text(_indented(values))}</code></pre></details>"
        for name, values in files.items()
        if values
    )


def _indented(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False)


STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #17191d; --soft: #5f646d;
  --rule: #dcdad4; --grid: #e9e7e1; --line: #1f4fd1; --pale: #b3c3f2; --dull: #bdbab2;
  --wash: #f3f2ed; --good: #1d6b42; --bad: #a3420b }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #121317; --ink: #e8e7e3;
  --soft: #9a9da5; --rule: #30323a; --grid: #24262d; --line: #86a8ff; --pale: #3b4d88;
  --dull: #5a5d68; --wash: #1b1d23; --good: #6cc795; --bad: #f0995c } }
* { box-sizing: border-box; margin: 0 }
body { background: var(--paper); color: var(--ink); font: 15px/1.55 Inter, system-ui,
  -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word }
main { max-width: 1120px; margin: 0 auto; padding: 56px 32px 96px }
h1 { font-size: 44px; line-height: 1.1; letter-spacing: -.025em; font-weight: 650 }
h2 { font-size: 15px; font-weight: 600 }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 28px 0 10px }
h3:first-child { margin-top: 0 }
p { max-width: 72ch; text-wrap: pretty }
p + p, div + p, pre + pre, p + pre, p + details, details + details, summary + pre { margin-top: 14px }
p + div, p + table { margin-top: 24px }
small, .fine { font-size: 13px; color: var(--soft) }
.state { font-size: 13px; font-weight: 550; margin-bottom: 10px }
.state::before { content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 8px;
  border-radius: 50%; background: currentColor }
.done { color: var(--good) }
.open { color: var(--line) }
header dl { display: flex; flex-wrap: wrap; gap: 14px 40px; margin-top: 26px }
dt { font-size: 13px; color: var(--soft) }
header dd { font-weight: 500 }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr));
  gap: 28px 24px; margin: 44px 0 }
.tiles div { border-top: 2px solid var(--ink); padding-top: 10px }
.tiles dd { font-size: 13px; color: var(--soft) }
.tiles dt + dd { font-size: 32px; line-height: 1.25; letter-spacing: -.02em; font-weight: 600;
  color: var(--ink) }
.notes { list-style: none; padding: 14px 18px; margin: 0 0 40px; background: var(--wash);
  border-left: 3px solid var(--bad); font-size: 14px }
header + .notes { margin-top: 40px }
.notes li + li { margin-top: 6px }
section { display: grid; grid-template-columns: 140px minmax(0, 1fr); gap: 20px 32px;
  border-top: 1px solid var(--rule); padding: 28px 0 44px }
header + section { margin-top: 40px }
.verdict { font-size: 17px; line-height: 1.45; font-weight: 550 }
.bad { color: var(--bad) }
.charts, .pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  gap: 32px 36px }
.charts.thirds, .charts.small { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 24px 28px }
.wide { grid-column: 1 / -1 }
figure { break-inside: avoid }
.chart figcaption { display: flex; justify-content: space-between; align-items: baseline;
  gap: 12px }
.chart b { font-weight: 600 }
.chart span { white-space: nowrap }
.chart span, .none { color: var(--soft); font-size: 13px }
.plot { display: block; width: calc(100% - 68px); height: 150px; margin: 14px 18px 28px 50px }
.plot, .plot svg { overflow: visible }
.wide .plot { height: 260px }
.small .plot { height: 84px }
.grid line { stroke: var(--grid) }
.labels text { font-size: 11.5px; fill: var(--soft) }
.labels .y { text-anchor: end }
.labels .x { text-anchor: middle }
path { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: round;
  stroke-linejoin: round }
.line { stroke: var(--line); stroke-width: 1.75 }
.raw { stroke: var(--pale); stroke-width: 1 }
.end { fill: var(--line); stroke: var(--paper); stroke-width: 1.5 }
.hover rect { fill: transparent }
.hover circle { fill: var(--ink); opacity: 0 }
.hover g:hover circle { opacity: 1 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; font-weight: 400; padding: 10px 24px 10px 0;
  border-bottom: 1px solid var(--rule) }
thead th { font-size: 13px; color: var(--soft); padding-top: 0 }
tbody th { white-space: nowrap }
td b { font-weight: 700 }
.bar { display: block; width: 100%; max-width: 190px; height: 5px; margin-top: 7px;
  background: var(--grid); overflow: visible; print-color-adjust: exact }
.bar rect { fill: var(--dull) }
tbody tr:first-child .bar rect { fill: var(--line) }
.bar line { stroke: var(--ink); stroke-width: 1.5 }
.list td { font-size: 13px; padding-top: 6px; padding-bottom: 6px }
img { display: block; max-width: 100%; height: auto; background: #fff }
.pictures figcaption { margin-top: 10px; font-size: 13px; color: var(--soft); max-width: 72ch }
pre { background: var(--wash); padding: 14px 18px; overflow-x: auto; font-size: 13px;
  line-height: 1.6 }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
pre code { overflow-wrap: normal }
td code { overflow-wrap: anywhere }
.scroll { overflow-x: auto }
summary { cursor: pointer; font-weight: 500 }
@media screen and (max-width: 760px) {
  main { padding: 32px 20px 64px }
  h1 { font-size: 34px }
  section, .charts, .charts.thirds, .charts.small, .pictures {
    grid-template-columns: minmax(0, 1fr) }
  header dl { gap: 14px 28px }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  th, td { padding-right: 12px }
}
@media print {
  @page { margin: 14mm }
  :root { color-scheme: light; --paper: #fff }
  body { font-size: 12px }
  main { padding: 0; max-width: none }
  section { grid-template-columns: minmax(0, 1fr); gap: 10px; padding: 16px 0 22px }
  .wide .plot { height: 190px }
  .plot { height: 110px }
  .tiles { grid-template-columns: repeat(3, 1fr); margin: 22px 0 }
  .hover { display: none }
  pre { white-space: pre-wrap }
  h2, h3 { break-after: avoid }
  tr { break-inside: avoid }
}
"""
