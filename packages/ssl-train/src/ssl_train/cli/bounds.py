"""Bounds of fields in `--help`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from ssl_core.bounds import bounds_in_words, field_hints


def with_bounds(cls: type[Any]) -> type[Any]:
    """A subclass of the dataclass `cls` whose `--help` shows bounds: "(above 0, default: 100)".

    tyro takes a field's help from its docstring and adds `help_behavior_hint`, by default the
    default value. The subclass differs in its annotations alone, so its instances have the same
    fields as those of `cls`.
    """
    annotations = {}
    for name, hints in field_hints(cls).items():
        if words := bounds_in_words(*hints):
            shown = tyro.conf.arg(help_behavior_hint=f"({words}, default: {{}})".format)
            annotations[name] = Annotated[hints[0], shown]
    same = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), {**same, "__annotations__": annotations})
