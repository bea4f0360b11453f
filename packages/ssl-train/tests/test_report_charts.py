"""`ssl_train.report.charts` and `numbers`: a curve is drawn whole, and its axes can be read."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict

import pytest

from ssl_train.report.charts import Chart, Curve, draw
from ssl_train.report.numbers import duration, number, plural, with_unit


def chart(values: dict[int, float], **options: object) -> Chart:
    """The chart of a loss with these values by step."""
    points = [(step, value) for step, value in values.items()]
    series = defaultdict(list, loss=points, step=[(step, step) for step in values])
    drawn = draw(Curve("loss", "Loss", **{"size": "wide", "log": True, **options}), series)
    assert drawn is not None
    return drawn


def heights(data: str) -> list[float]:
    return [float(y) for y in re.findall(r"[ML]\d+ (\d+)", data)]


def names(ticks: object) -> list[str]:
    return [name for _, name in ticks]


def test_a_scalar_that_was_never_logged_has_no_chart():
    assert draw(Curve("loss", "Loss"), defaultdict(list, step=[(1, 1.0)])) is None


def test_smoothed_line_is_drawn_over_the_raw_one_and_is_smoother():
    def roughness(data: str) -> float:
        return sum(abs(b - a) for a, b in itertools.pairwise(heights(data)))

    lines = chart({s: 1 / s + 0.1 * math.sin(3 * s) for s in range(1, 601)}).lines
    assert list(lines) == ["raw", "line"]
    assert roughness(lines["line"]) < roughness(lines["raw"]) / 3


def test_a_curve_of_few_points_is_not_smoothed():
    assert list(chart({s: 1.0 / s for s in range(1, 40)}).lines) == ["line"]


def test_smoothed_line_begins_and_ends_where_a_straight_curve_does():
    lines = chart({s: 3.0 - s / 300 for s in range(601)}).lines
    raw, line = heights(lines["raw"]), heights(lines["line"])
    one_step = 10_000 / 600
    assert abs(raw[0] - line[0]) < 4 * one_step and abs(raw[-1] - line[-1]) < 4 * one_step


def test_single_point_is_drawn_as_a_dot():
    drawn = chart({2: 0.9})
    assert drawn.lines["line"].endswith("h0") and drawn.end[0] == 1.0
    assert all(float(name.replace(",", "")).is_integer() for name in names(drawn.steps))


def test_values_that_are_not_finite_leave_gaps():
    values = {s: 1.0 / s for s in range(1, 31)} | dict.fromkeys((10, 11, 13, 20, 30), math.nan)
    data = chart(values).lines["line"]
    assert data.count("M") == 4 and data.count("h0") == 1
    assert chart(values).detail.endswith("last not finite")


def test_a_chart_without_a_finite_value_has_no_lines():
    drawn = chart(dict.fromkeys(range(5), math.nan))
    assert drawn == Chart("Loss", "wide")


@pytest.mark.parametrize("values", [[0.0, -1e299, 1e299, 0.0, -0.0], [3.0] * 5, [0.0] * 5, [1e-300, 0.0]])
def test_extreme_and_flat_values_are_drawn(values):
    drawn = chart(dict(enumerate(values)))
    assert len(drawn.values) >= 2 and "nan" not in drawn.lines["line"]


def test_long_run_is_thinned_but_keeps_its_spike():
    drawn = chart({s: 9.7 if s == 12_346 else 2 + math.sin(s) for s in range(1, 20_001)})
    raw = heights(drawn.lines["raw"])
    assert min(raw) < 400 and sorted(raw)[1] > 5000
    assert len(raw) <= 1000 and len(drawn.strips) == 80


def test_thinning_keeps_gaps():
    lines = chart({s: math.nan if s == 5001 else 1.0 for s in range(1, 10_001)}).lines
    assert [data.count("M") for data in lines.values()] == [2, 2]


def test_a_scalar_that_should_vary_is_drawn_only_if_it_does():
    series = defaultdict(list, step=[(1, 1.0), (2, 2.0)], decay=[(1, 0.04), (2, 0.04)])
    curve = Curve("decay", "Weight decay", varying=True)
    assert draw(curve, series) is None
    series["decay"][1] = (2, 0.4)
    assert draw(curve, series) is not None


def test_axis_of_steps_begins_at_zero_unless_the_run_began_far_from_it():
    assert names(chart(dict.fromkeys(range(10, 101, 10), 1.0)).steps)[0] == "0"
    assert names(chart(dict.fromkeys(range(90_000, 100_001, 1000), 1.0)).steps)[0] == "90k"


@pytest.mark.parametrize("value", [lambda s: 0.9999 + 1e-7 * s, lambda s: 54_321 + s / 10])
def test_axis_labels_differ_where_values_hardly_do(value):
    drawn = chart({1_000_000 + s: value(s) for s in range(50)})
    for found in (names(drawn.steps), names(drawn.values)):
        assert len(set(found)) == len(found) >= 2


def test_wide_range_takes_a_log_axis():
    drawn = chart({s: 1000 * math.exp(-s / 5) for s in range(1, 61)})
    assert drawn.title == "Loss (log scale)"
    assert names(drawn.values) == ["0.001", "0.01", "0.1", "1", "10", "100", "1,000"][-len(drawn.values) :]
    steps = [b - a for a, b in itertools.pairwise(heights(drawn.lines["line"]))]
    assert max(steps) - min(steps) <= 2


def test_log_axis_over_many_decades_keeps_few_labels_and_the_curve_inside():
    drawn = chart({s: 10.0 ** (s / 2) for s in range(80)}, log=True)
    assert 2 <= len(drawn.values) <= 8
    assert all(0 <= y <= 10_000 for y in heights(drawn.lines["raw"]))


def test_values_below_zero_stay_linear():
    drawn = chart({s: -1 + math.exp(-s) for s in range(1, 31)})
    assert drawn.title == "Loss" and "\u2212" in names(drawn.values)[0]


def test_a_share_is_drawn_in_percent():
    drawn = chart({0: 0.01, 1: 0.02, 2: 0.04}, percent=True, size="")
    assert drawn.detail == "4 %" and names(drawn.values)[-1].endswith(" %")
    assert [strip[-1] for strip in drawn.strips] == ["step 0: 1 %", "step 1: 2 %", "step 2: 4 %"]


def test_numbers_are_short_and_exact_enough():
    assert [number(x) for x in (0.0, 12, 1234.5, 0.123456, -2.5, 1.234e-7, 1e16, math.nan)] == [
        *("0", "12", "1,234", "0.1235", "\u22122.5", "1.23e-7", "1e16", "not finite")
    ]
    assert [duration(s) for s in (12.34, 245, 22_020)] == ["12.3 s", "4 min 05 s", "6 h 07 min"]
    assert [plural(1, "line"), plural(1200, "line")] == ["1 line", "1,200 lines"]
    assert [with_unit(98.765, " %"), with_unit(math.nan, " %")] == ["98.8 %", "not finite"]
