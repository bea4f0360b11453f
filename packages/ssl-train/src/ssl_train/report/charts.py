"""Curves over the steps of a run, as the geometry that templates/chart.html.jinja draws as SVG.

Positions are shares of the plot: x to the right, y downwards, both in [0, 1].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ssl_train.report.numbers import labels, number, with_unit
from ssl_train.report.read import Point, finite

Ticks = Sequence[tuple[float, str]]  # (position, label)
Strip = tuple[float, float, float, float, str]  # (left, width) of a strip to hover over, (x, y, text) of its point
STEP_TICKS = {"wide": 8, "": 6, "third": 4, "small": 3}  # about how many, by the size of a chart


@dataclass(frozen=True)
class Curve:
    """Which scalar to draw, and how."""

    key: str
    title: str
    size: str = ""  # a key of STEP_TICKS
    percent: bool = False  # the scalar is a share in [0, 1]
    zero: bool = False  # 0 is on the value axis
    log: bool = False  # the value axis is logarithmic where the values span more than a factor of 100
    varying: bool = False  # a scalar that never changes is not drawn
    smooth: bool = True  # a curve of 40 points or more is drawn smooth, over its raw values


@dataclass(frozen=True)
class Chart:
    """A drawn curve. It has no lines if no value was finite."""

    title: str
    size: str
    detail: str = ""
    label: str = ""
    values: Ticks = ()
    steps: Ticks = ()
    lines: dict[str, str] = field(default_factory=dict)  # path data by class: "line", "raw" below it
    end: Point = (0.0, 0.0)
    strips: Sequence[Strip] = ()


def span(steps: list[Point]) -> tuple[float, float]:
    """First and last step on the axis. It begins at 0 unless the run began far from 0."""
    first, last = (steps[0][0], steps[-1][0]) if steps else (0.0, 1.0)
    if 0 <= first < 0.2 * last or 0 < first == last:
        first = 0.0
    return first, max(last, first + 1.0)


def draw(curve: Curve, series: Mapping[str, list[Point]], beside: Sequence[Point] = ()) -> Chart | None:
    """`curve` over the steps of the whole run, or None if there is nothing to draw.

    The value axis also holds the points `beside`.
    """
    points = series[curve.key]
    if not points or (curve.varying and len({value for _, value in points}) < 2):
        return None
    unit = " %" if curve.percent else ""
    scale = 100 if curve.percent else 1
    points = [(step, scale * value) for step, value in points]
    known, (first, last) = finite(points), span(series["step"])
    if not known:
        return Chart(curve.title, curve.size)
    heights = [value for _, value in known] + [scale * value for _, value in finite(list(beside))]
    low, high = min(heights), max(heights)
    log = curve.log and 0 < 100 * low < high
    height = math.log10 if log else float
    if log:  # whole decades; each label has a unit of its own, or they would read 0.001k, 0.01k, …
        bottom, top = math.floor(height(low)), math.ceil(height(high))
        ticks = round_numbers(bottom, top, min(6, top - bottom))
        names = [labels([10.0**tick])[0] for tick in ticks]
    else:
        ticks = round_numbers(min(low, 0.0) if curve.zero else low, high, 2 if curve.size == "small" else 4)
        names = labels(ticks)

    def x(step: float) -> float:
        return (step - first) / (last - first)

    def y(value: float) -> float:
        return (ticks[-1] - value) / (ticks[-1] - ticks[0])

    wide = curve.size == "wide"
    ending = with_unit(points[-1][1], unit)
    steps = [s for s in round_numbers(first, last, STEP_TICKS[curve.size]) if first <= s <= last and s.is_integer()]
    raw = [(x(step), y(height(value))) for step, value in points]
    lines = {"raw": raw, "line": smooth(raw)} if curve.smooth and len(known) >= 40 else {"line": raw}
    named = [(x(s), y(height(value)), f"step {number(s)}: {with_unit(value, unit)}") for s, value in known]
    return Chart(
        title=curve.title + (" (log scale)" if log else ""),
        size=curve.size,
        detail=f"lowest {number(low)} · last {ending}" if wide else ending,
        label=f"{curve.title} from {number(known[0][1])} at step {number(known[0][0])} to {ending}",
        values=[(y(tick), name + unit) for tick, name in zip(ticks, names, strict=True)],
        steps=[(x(step), name) for step, name in zip(steps, labels(steps), strict=True)],
        lines={kind: path(thin(line, 300 if wide else 120)) for kind, line in lines.items()},
        end=finite(lines["line"])[-1],
        strips=list(_strips(named, 80 if wide else 32)),
    )


@dataclass(frozen=True)
class Shares:
    """Figures by the share of the labels, on a logarithmic axis."""

    values: Ticks
    shares: Ticks
    lines: list[tuple[str, str, Sequence[tuple[float, float, str]]]]  # (name, path data, (x, y, text) of its points)


def by_share(curves: Mapping[str, list[tuple[float, float, float | None]]]) -> Shares | None:
    """`curves` of (share, figure, half of its interval) by name, or None if there is none."""
    if not curves:
        return None
    shares = sorted({share for points in curves.values() for share, _, _ in points})
    heights = [100 * mean for points in curves.values() for _, mean, _ in points]
    ticks = round_numbers(min(heights), max(heights), 4)

    def x(share: float) -> float:
        return math.log(share / shares[0]) / math.log(shares[-1] / shares[0]) if len(shares) > 1 else 0.5

    def y(mean: float) -> float:
        return (ticks[-1] - 100 * mean) / (ticks[-1] - ticks[0])

    lines = []
    for name, points in curves.items():
        dots = []
        for share, mean, half in points:
            spread = "" if half is None else f" ± {100 * half:.1f}"
            dots.append((x(share), y(mean), f"{name}, {share:.0%} of the labels: {100 * mean:.1f} %{spread}"))
        lines.append((name, path([(left, height) for left, height, _ in dots]), dots))
    values = [(y(tick / 100), f"{name} %") for tick, name in zip(ticks, labels(ticks), strict=True)]
    return Shares(values, [(x(share), f"{share:.0%}") for share in shares], lines)


def round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` evenly spaced numbers that enclose [low, high].

    Their distance is 1, 2 or 5 times a power of ten.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(high) / 10 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def smooth(points: list[Point]) -> list[Point]:
    """Centred moving mean over a thirtieth of the points, taken twice so that it has no corners."""
    values = [value for _, value in finite(points)]
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


def thin(points: list[Point], buckets: int) -> list[Point]:
    """At most three points per bucket: its extremes, so that spikes stay, and its first gap."""
    if len(points) <= 2 * buckets:
        return points
    kept = {0, len(points) - 1}
    for b in range(buckets):
        bucket = range(b * len(points) // buckets, (b + 1) * len(points) // buckets)
        known = sorted((i for i in bucket if not math.isnan(points[i][1])), key=lambda i: points[i][1])
        kept.update(known[:1], known[-1:], [i for i in bucket if math.isnan(points[i][1])][:1])
    return [points[i] for i in sorted(kept)]


def path(points: list[Point]) -> str:
    """SVG path data in ten-thousandths. A nan breaks the line; a single point becomes a dot."""
    data, pen_up = [], True
    for (x, y), (_, after) in itertools.pairwise([*points, (0.0, math.nan)]):
        if not math.isnan(y):
            move, dot = "M" if pen_up else "L", "h0" if pen_up and math.isnan(after) else ""
            data.append(f"{move}{x * 1e4:.0f} {y * 1e4:.0f}{dot}")
        pen_up = math.isnan(y)
    return "".join(data)


def _strips(points: list[tuple[float, float, str]], most: int) -> Iterator[Strip]:
    """Strips around at most `most` of these (x, y, text). Neighbouring strips meet halfway."""
    count = min(most, len(points))
    chosen = [points[i * (len(points) - 1) // max(1, count - 1)] for i in range(count)]
    edges = [0.0, *((a[0] + b[0]) / 2 for a, b in itertools.pairwise(chosen)), 1.0]
    for point, (left, right) in zip(chosen, itertools.pairwise(edges), strict=True):
        yield left, right - left, *point
