"""Types with bounds for the fields of dataclasses, and the one check of them.

A field states its bounds in its type, by annotated-types: `epochs: Annotated[float, Gt(0)] = 100`.
They hold in every subclass too, even if it gives the field another default and a plain type,
`epochs: float = 800`. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Predicate

from ssl_core.errors import ConfigError, OutOfRange


def rising(pair: tuple[float, float]) -> bool:
    """Whether the second number is at least the first."""
    return pair[0] <= pair[1]


Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
"""A probability, or a part of a whole."""
Portion = Annotated[float, Interval(gt=0, le=1)]
"""A part of a whole that is more than nothing."""
Rate = Annotated[float, Interval(ge=0, lt=1)]
"""A share that is never the whole: of dropout, of a moving average."""
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Width = Annotated[int, Interval(ge=1, le=2**16)]
"""Features, channels or heads of a layer."""
Depth = Annotated[int, Interval(ge=1, le=1000)]
"""Layers or blocks of a network."""
Scale = Annotated[tuple[Portion, Portion], Predicate(rising)]
"""Range of the share of an image's area that a random crop keeps."""
Jitter = tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Interval(ge=0, le=0.5)]]
"""Strengths of brightness, contrast, saturation and hue; a hue of 0.5 is half a circle."""


@dataclass(frozen=True)
class Checked:
    """Base of dataclasses that check every field's type and bounds when they are made.

    `repr` has all fields; `print` shows those that differ from their defaults.
    """

    def __str__(self) -> str:
        known = ((field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self))
        changed = ", ".join(f"{name}={value!r}" for name, value, default in known if value != default)
        shown = textwrap.fill(changed, 96, initial_indent="    ", subsequent_indent="    ")
        return f"{type(self).__name__}(\n{shown}\n)  # otherwise its defaults"

    def __post_init__(self) -> None:
        for name, hints in field_hints(type(self)).items():
            for hint in hints:
                read(getattr(self, name), hint, name)


@functools.cache
def field_hints(cls: type) -> dict[str, list[Any]]:
    """Field -> its type in the dataclass `cls`, then its types in the bases of `cls`."""
    stated = [get_type_hints(base, include_extras=True) for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: list(dict.fromkeys(hints[name] for hints in stated if name in hints)) for name in names}


def read(value: Any, hint: Any, field: str) -> Any:
    """`value` as the type `hint`; converts an int to a float and a list to a tuple, nothing else.

    Raises OutOfRange if `value` breaks a bound, ConfigError if it has another type.
    """
    if isinstance(hint, type):
        return _read_plain(value, hint, field)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found, (tests, words) = read(value, args[0], field), bounds_of(args[1:])
        if not all(keeps(found, limit) for keeps, limit in tests):
            raise OutOfRange(f"{field} = {value!r}: must be {words}")
        return found
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return read(value, option, field)
            except OutOfRange:
                raise
            except ConfigError:  # the value may have the type of the next option
                continue
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(hints) == len(value):
            return tuple(read(v, h, f"{field}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True)))
    raise ConfigError(f"{field} = {value!r}: expected {_name(hint)}")


def _read_plain(value: Any, hint: type, field: str) -> Any:
    """`read` for a type that is a class."""
    if hint is float and type(value) is int:
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is int):
        raise ConfigError(f"{field} = {value!r}: expected {_name(hint)}")
    if hint is float and not math.isfinite(value):
        raise OutOfRange(f"{field} = {value!r}: must be finite")
    if hint is int and abs(value) >= 2**63:
        raise OutOfRange(f"{field} = {value!r}: must be below 2^63")
    return value


BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "gt": (operator.gt, "above {}"),
    "ge": (operator.ge, "at least {}"),
    "lt": (operator.lt, "below {}"),
    "le": (operator.le, "at most {}"),
    "multiple_of": (lambda value, divisor: value % divisor == 0, "a multiple of {}"),
    "func": (lambda value, holds: holds(value), "{}"),
}
"""Attribute of an annotated-types bound -> its test of (value, limit), and the bound in words."""


@functools.cache
def bounds_of(metadata: tuple[Any, ...]) -> tuple[list[tuple[Callable[[Any, Any], bool], Any]], str]:
    """([(test, limit), …], in words) of the bounds in the metadata of an `Annotated` type."""
    tests, said = [], []
    for stated in metadata:
        for attribute, (keeps, words) in BOUNDS.items():
            limit = getattr(stated, attribute, None)
            if limit is not None:
                tests.append((keeps, limit))
                said.append(words.format(limit.__name__ if callable(limit) else f"{limit:,}"))
    return tests, " and ".join(said)


def _name(hint: Any) -> str:
    """A type as an error names it: "float or None"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _name(args[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    names = ["..." if arg is Ellipsis else _name(arg) for arg in args]
    if origin is tuple:
        return f"({', '.join(names)})"
    return " or ".join(names) or ("None" if hint is type(None) else hint.__name__)
