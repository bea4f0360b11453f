"""The HTML report of a run: one file that opens offline, prints, and needs no JavaScript.

`write_report` reads a run folder and writes nothing but its `report.html`. Any method may log any
scalar: one that this page has no place for gets a small curve of its own. Two figures say whether
features are alive: their standard deviation (SimSiam, Chen & He, arXiv 2011.10566, section 4.1)
and RankMe, the exponential of the entropy of their singular values (Garrido et al., arXiv
2210.02885, equation 1).
"""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ssl_train.asked import GIVEN
from ssl_train.report.charts import Chart, Curve, by_share, draw
from ssl_train.report.numbers import duration, labels, number, plural, with_unit
from ssl_train.report.read import PROTOCOLS, Point, Run, Score, finite, read_evaluation, read_run

STD, RANKME, KNN = "health/feature_std", "health/rankme", "health/knn"
TRAINING = (
    Curve("loss", "Loss", size="wide", log=True),
    Curve("lr", "Learning rate", zero=True, smooth=False),
    Curve("weight_decay", "Weight decay", varying=True, smooth=False),
    Curve("grad_norm", "Gradient norm", zero=True, log=True),
    Curve("images_per_second", "Samples per second", zero=True),
    Curve("data_wait", "Time spent waiting for data", zero=True, percent=True),
)
HEALTH = (
    Curve(STD, "Feature std", size="third", zero=True),
    Curve(RANKME, "RankMe", size="third", zero=True),
    Curve(KNN, "Leave-one-out k-NN in training", size="third", zero=True, percent=True),
)
PLACED = {curve.key for curve in TRAINING + HEALTH} | {"step", "epoch", "seconds"}
NOT_XML = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_report(run: str | Path) -> Path:
    """Write `report.html` into a run folder, replacing it in one step, and return its path.

    The bytes depend on the folder and on `run` as written, on nothing else. A run in progress, a
    torn line of metrics.jsonl, values that are not finite and optional files that cannot be read
    give a page that says so.

    Raises ReportError when the folder or its metrics.jsonl is missing, and when there is neither a
    config.json, which training writes with the weights, nor a run.json, which it writes first.
    """
    from ssl_core.hub.weights_file import write_whole  # imports torch, which this page does without

    page = render(read_run(run))
    path = Path(run) / "report.html"
    write_whole(path, lambda beside: beside.write_text(page, "utf-8", "backslashreplace", "\n"))
    return path


def render(run: Run) -> str:
    """The whole page. Characters that XML cannot hold become U+FFFD."""
    method = str(run.started.get("method", "run"))
    page = (
        templates()
        .get_template("page.html.jinja")
        .render(
            run=run,
            title=run.folder.resolve().name,
            finished=(run.folder / "model.safetensors").is_file(),
            started=run.started,
            method=method.rpartition(":")[2],
            given=GIVEN,
            names=re.fullmatch(r"(\w+)[\w.]*:(\w+)", method),  # package and class: nothing else reaches a command
            gaps={
                key: at for key, points in run.series.items() if (at := [s for s, value in points if math.isnan(value)])
            },
            tiles=list(tiles(run)),
            training=charts(run, *TRAINING),
            verdict=verdict(run.evaluation.columns),
            curves=by_share(run.evaluation.curves),
            protocol=dict(leaves(run.evaluation.protocol)),
            snapshots=by_step(run),
            health=charts(run, *HEALTH),
            alarm=alarm(run.series[STD], run.series[RANKME], watched=run.started.get("can_collapse", True)),
            more=more(run),
        )
    )
    return NOT_XML.sub("\ufffd", page)


def templates() -> Any:
    """The jinja2 environment that renders every page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    room = PackageLoader("ssl_train.report")
    environment = Environment(loader=room, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "labels": labels, "duration": duration, "plural": plural}
    environment.filters |= {"quote": shlex.quote, "json": partial(json.dumps, ensure_ascii=False)}
    environment.filters["share"] = "{:.2%}".format
    return environment


def tiles(run: Run) -> Iterator[tuple[str, str, str]]:
    """(title, figure, the line below it) for each figure at the top of the page."""
    if loss := run.series["loss"]:
        step, value = [*finite(loss), *loss][0]
        beside = f"from {number(value)} at step {number(step)}" if len(loss) > 1 else "first step"
        yield "Loss", number(loss[-1][1]), beside
    for title, scores in list(run.evaluation.columns.items())[:3]:
        (ours, first), *others = [(name, f"{100 * score.mean:.1f} %") for name, score in scores.items()]
        yield title, first, " ".join(others[0]) if others else ours
    knn, std, rankme = run.series[KNN], run.series[STD], run.series[RANKME]
    if knn and not run.evaluation.columns:
        yield "Leave-one-out k-NN", with_unit(100 * knn[-1][1], " %"), f"at step {number(knn[-1][0])}"
    if std and rankme:
        yield "RankMe", number(rankme[-1][1]), f"feature std {number(std[-1][1])}"
    speed, wait = finite(run.series["images_per_second"]), finite(run.series["data_wait"])
    if speed and wait:
        rate, share = (statistics.median(value for _, value in points) for points in (speed, wait))
        yield "Samples per second", labels([float(f"{rate:.3g}")])[0], f"data wait {with_unit(100 * share, ' %')}"


def charts(run: Run, *curves: Curve) -> list[Chart]:
    """Charts of the curves that the run logged."""
    return [chart for chart in (draw(curve, run.series) for curve in curves) if chart]


def more(run: Run) -> dict[str, list[Chart]]:
    """Curves of the scalars that no section above shows, grouped by the prefix of their names."""
    groups: dict[str, list[Chart]] = defaultdict(list)
    for key in sorted(run.series.keys() - PLACED):
        group, _, name = key.rpartition("/")
        groups[group] += charts(run, Curve(key, name, size="small"))
    return dict(sorted(groups.items()))


def by_step(run: Run) -> dict[str, dict[str, Score]]:
    """Title of a protocol -> name of a step -> its score; the run's own weights come last."""
    columns: dict[str, dict[str, Score]] = defaultdict(dict)
    own = [("the run", run.evaluation)] if run.snapshots else []
    for name, evaluation in [*((f"step {step:,}", found) for step, found in run.snapshots), *own]:
        for title, scores in evaluation.columns.items():
            if evaluation.encoders[0] in scores:
                columns[title][f"{name} on {evaluation.data}"] = scores[evaluation.encoders[0]]
    return columns


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their path. A long or nested list is replaced by its length."""
    for key, value in tree.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key} ")
        elif len(values) > 12 or any(isinstance(v, list) for v in values):
            yield f"{above}{key}", f"{len(values)} values"
        else:
            yield f"{above}{key}", ", ".join(number(v) if isinstance(v, float) else str(v) for v in values)


def advice(evaluation: dict[str, Any]) -> str:
    """The verdict on evaluation.json that the terminal prints, or "" if it has no rows."""
    return verdict(read_evaluation(evaluation).columns)[0]


def verdict(columns: dict[str, dict[str, Score]]) -> tuple[str, bool]:
    """(what ours gains over each baseline, whether one is as good).

    On the linear probe where there is one, else under the first protocol. Names the other protocols
    under which a baseline is ahead.
    """
    if not columns:
        return "", False
    title = next((title for title in columns if title.startswith(PROTOCOLS["linear"])), next(iter(columns)))
    (ours, best), *others = ((name, 100 * score.mean) for name, score in columns[title].items())
    parts = [f"{abs(best - x):.1f} points {'below' if best < x else 'above'} {name}" for name, x in others]
    if not parts:
        return "", False
    lost = any(best <= x for _, x in others)
    text = f"{title} on {ours} features: {', '.join(parts)}."
    if lost:
        text += " A baseline does as well or better: train longer, or on more data."
    for other, scores in columns.items():
        ahead = [name for name, score in scores.items() if ours in scores and score.mean > scores[ours].mean]
        if ahead and other != title:
            text += f" In {other}, {' and '.join(ahead)} {'is' if len(ahead) == 1 else 'are'} ahead."
            if other.startswith(PROTOCOLS["knn"]):
                text += " k-NN compares features as they are, without learning which directions matter."
    return text, lost


def alarm(std: list[Point], rankme: list[Point], *, watched: bool) -> str:
    """What the last figures of health say is wrong; nothing if they look healthy.

    A method that cannot collapse is not `watched`: its features may be narrower than those of the
    untrained network.
    """
    if not std or not rankme:
        return ""
    std_then, std_now, rank_then, rank_now = std[0][1], std[-1][1], rankme[0][1], rankme[-1][1]
    for name, value in (("feature std", std_now), ("RankMe", rank_now)):
        if math.isnan(value):
            return f"The last {name} is not finite: the features hold nan or inf."
    then, now = (f"feature std {number(std[i][1])}, RankMe {number(rankme[i][1])}" for i in (0, -1))
    if std_now < 0.01 or rank_now < 1.2:
        return f"The features have collapsed: {now}."
    # The bounds of the watch during training. One figure alone may fall without harm.
    if watched and std_now < 0.3 * std_then and rank_now < 0.5 * rank_then:
        return f"The features are collapsing: {now}; the run began at {then}."
    return ""
