"""How numbers are written on the page."""

from __future__ import annotations

import math


def number(value: float, digits: int = 4) -> str:
    """`value` as 1,234, 0.1234 or 1.23e-7, with a true minus sign; nan is "not finite"."""
    if math.isnan(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e15:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    is_whole = value == int(value) or (digits == 4 and abs(value) >= 1000)
    return (f"{value:,.0f}" if is_whole else f"{value:,.{digits}g}").replace("-", "\u2212")


def with_unit(value: float, unit: str = "") -> str:
    """A number with its unit. Values with a unit are measured, so they get three digits."""
    return number(float(f"{value:.3g}")) + unit if unit and not math.isnan(value) else number(value)


def labels(values: list[float]) -> list[str]:
    """Axis labels in one unit (12k, 3.5M), with just enough digits to tell them apart."""
    top = max(map(abs, values), default=0.0)
    units = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (0.0, 1.0, ""))
    unit, suffix = next((u, s) for floor, u, s in units if floor <= top < 1e15 or not floor)
    names = []
    for digits in range(4, 13):
        names = [number(value / unit, digits) + (suffix if value else "") for value in values]
        if len(set(names)) == len(names):
            break
    return names


def duration(seconds: float) -> str:
    """`seconds` as 12.3 s, 4 min 05 s or 6 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def plural(count: int, noun: str) -> str:
    """The count with its noun: 1 line, 2 lines."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
