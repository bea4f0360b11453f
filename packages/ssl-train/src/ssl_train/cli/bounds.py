"""Bounds of fields in `--help`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

import tyro

from ssl_core.bounds import bounds_of, field_hints


def with_bounds(cls: type[Any]) -> type[Any]:
    """A subclass of the dataclass `cls` whose `--help` shows bounds: "(above 0, default: 100)".

    tyro takes a field's help from its docstring and adds `help_behavior_hint`, by default the
    default value. The subclass differs in its annotations alone, so its instances have the same
    fields as those of `cls`.
    """
    annotations = {}
    for name, hints in field_hints(cls).items():
        if stated := bounds_in_words(*hints):
            shown = tyro.conf.arg(help_behavior_hint=f"({stated}, default: {{}})".format)
            annotations[name] = Annotated[hints[0], shown]
    same = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), {**same, "__annotations__": annotations})


def bounds_in_words(*hints: Any) -> str:
    """The bounds of a value and of its elements, in words; empty if the types state none."""
    found = []
    for hint in hints:
        inner, own = get_args(hint), ""
        if get_origin(hint) is Annotated:
            inner, (_, own) = inner[:1], bounds_of(inner[1:])
        found += [bounds_in_words(*inner), own]
    return ", ".join(dict.fromkeys(filter(None, found)))
