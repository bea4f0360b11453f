"""Bounds of fields in `--help`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro

from ssl_core.bounds import bounds_of, field_hints, words

C = TypeVar("C")


def with_bounds(cls: type[C]) -> type[C]:
    """The dataclass `cls` as tyro should read it: a subclass whose `--help` shows bounds, "(above 0, default: 100)".

    tyro takes help texts from docstrings and has no place for bounds there, but its `help_behavior_hint` stands behind
    them, with the default. Only annotations differ, so an instance has the fields and values of a `cls`.
    """
    annotations = {}
    for name, hints in field_hints(cls).items():
        if stated := bounds_in_words(*hints):
            shown = tyro.conf.arg(help_behavior_hint=f"({stated}, default: {{}})".format)
            annotations[name] = Annotated[hints[0], shown]
    return type(
        cls.__name__, (cls,), {"__annotations__": annotations, "__doc__": cls.__doc__, "__module__": cls.__module__}
    )


def bounds_in_words(*hints: Any) -> str:
    """What types ask of a value and of its elements, in words; empty where they ask for nothing."""
    found = []
    for hint in hints:
        inner, own = get_args(hint), ""
        if get_origin(hint) is Annotated:
            inner, own = inner[:1], words(bounds_of(inner[1:]))
        found += [bounds_in_words(*inner), own]
    return ", ".join(dict.fromkeys(filter(None, found)))
