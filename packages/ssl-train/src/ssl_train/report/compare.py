"""Several runs beside each other: one table and one page, from their folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_train.report.charts import Curve, Ticks, draw
from ssl_train.report.numbers import duration, number
from ssl_train.report.page import HEALTH, NOT_XML, templates
from ssl_train.report.read import ReportError, Run, Score, read_run

MOST = 8
"""The most runs on one page: nobody can tell more lines apart."""
LOSS = Curve("loss", "Loss", size="wide", log=True)


@dataclass(frozen=True)
class Overlay:
    """One scalar of several runs, on common axes."""

    title: str
    values: Ticks
    steps: Ticks
    lines: list[tuple[int, str]]
    """(number of the run, path data)"""


def compare(runs: Sequence[str | Path], out: str | Path) -> list[Run]:
    """Write a page on several runs to `out`, and return what was read of them.

    Raises ReportError if a folder holds no run, or for fewer than two or more than MOST runs.
    """
    from ssl_core.hub.weights_file import write_whole  # imports torch, which this page does without

    if not 2 <= len(runs) <= MOST:
        raise ReportError(f"{len(runs)} runs: give 2 to {MOST} run folders")
    read = [read_run(run) for run in runs]
    page = NOT_XML.sub("\ufffd", render(read))
    write_whole(Path(out), lambda beside: beside.write_text(page, encoding="utf-8", newline="\n"))
    return read


def facts(run: Run) -> dict[str, Any]:
    """What `rows` says of a run, as numbers."""
    columns, series = run.evaluation.columns, run.series
    return {
        "run": run.name,
        "method": method_of(run),
        "data": str(run.started.get("data", "?")),
        "steps": int(series["step"][-1][0]) if series["step"] else 0,
        "seconds": run.seconds,
        "loss": series["loss"][-1][1] if series["loss"] else None,
        "scores": {title: vars(next(iter(column.values()))) for title, column in columns.items()},
        "config": run.started.get("config", {}),
    }


def render(runs: Sequence[Run]) -> str:
    """The page."""
    methods = {method_of(run) for run in runs}
    curves = [*([LOSS] if len(methods) == 1 else []), *HEALTH]
    overlays = [overlay(curve, [run.series for run in runs]) for curve in curves]
    return (
        templates()
        .get_template("compare.html.jinja")
        .render(
            names=[run.name for run in runs],
            rows=rows(runs),
            overlays=[drawn for drawn in overlays if drawn],
            one_method=len(methods) == 1,
        )
    )


def method_of(run: Run) -> str:
    """The method's name, such as MAE."""
    return str(run.started.get("method", "?")).rpartition(":")[2]


def rows(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Title -> a cell for each run: method, results, and the settings that differ between runs.

    A setting is shown only if all runs have it.
    """
    configs = [dict(run.started.get("config", {})) for run in runs]
    common = [key for key in configs[0] if all(key in config for config in configs)]
    differing = [key for key in common if len({str(config[key]) for config in configs}) > 1]
    last = [run.series["step"][-1][0] if run.series["step"] else 0.0 for run in runs]
    table = {
        "method": [method_of(run) for run in runs],
        "data": [Path(str(run.started.get("data", "?"))).name for run in runs],
        "steps": [number(step) for step in last],
        "time": [duration(run.seconds) for run in runs],
        "loss": [number(run.series["loss"][-1][1]) if run.series["loss"] else "–" for run in runs],
    }
    scores = [{title: next(iter(column.values())) for title, column in run.evaluation.columns.items()} for run in runs]
    for title in dict.fromkeys(title for found in scores for title in found):
        table[title] = [cell(found.get(title)) for found in scores]
    for key in differing:
        table[key] = [shown(config[key]) for config in configs]
    return table


def cell(score: Score | None) -> str:
    """An accuracy in %, with its interval where it has one."""
    if score is None:
        return "–"
    return f"{100 * score.mean:.1f} %" + ("" if score.half is None else f" ± {100 * score.half:.1f}")


def shown(value: Any) -> str:
    """A setting in a few characters."""
    text = number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else text[:23] + "…"


def as_text(table: Mapping[str, Sequence[str]]) -> str:
    """The table for a terminal, a run in each column."""
    widths = [
        max(map(len, table)),
        *(max(len(cells[i]) for cells in table.values()) for i in range(len(table["method"]))),
    ]
    lines = ([title, *cells] for title, cells in table.items())
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def overlay(curve: Curve, series: Sequence[Mapping[str, list[tuple[float, float]]]]) -> Overlay | None:
    """`curve` of every run that logged it, on common axes, or None if no run did."""
    found = {i: run for i, run in enumerate(series) if any(value == value for _, value in run.get(curve.key, []))}
    if not found:
        return None
    together = {
        "step": sorted({point for run in found.values() for point in run["step"]}),
        curve.key: [point for run in found.values() for point in run[curve.key]],
    }
    charts = {i: draw(curve, {**together, curve.key: run[curve.key]}, together[curve.key]) for i, run in found.items()}
    drawn = {i: chart for i, chart in charts.items() if chart is not None}
    first = next(iter(drawn.values()))
    return Overlay(first.title, first.values, first.steps, [(i, chart.lines["line"]) for i, chart in drawn.items()])
