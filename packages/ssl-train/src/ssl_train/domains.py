"""Views for four kinds of pictures, as settings of a config: what `--views NAME` sets. Imports no
torch.

A setting that a config has no field for is left out, as MAE has no colour jitter. A method that
cannot take turned pictures refuses the views from above.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from ssl_core.config import ConfigError

C = TypeVar("C")

QUIET: dict[str, Any] = {"grayscale_p": 0.0, "grayscale": 0.0, "solarize_p": 0.0}
"""No grey, where colours or bands are the signal, and nothing turned into its negative."""

VIEWS: dict[str, dict[str, Any]] = {
    "natural": {},
    "medical": {
        **QUIET, "crop_scale": (0.5, 1.0), "global_scale": (0.5, 1.0), "local_scale": (0.1, 0.5), "flip": False,
        "jitter": (0.2, 0.2, 0.0, 0.0), "blur_p": 0.0, "gamma": (0.8, 1.25), "noise": 0.02,
    },
    "satellite": {
        **QUIET, "crop_scale": (0.2, 1.0), "flip": True, "turn": True, "jitter": (0.4, 0.4, 0.0, 0.0),
        "band_drop_p": 0.1,
    },
    "microscopy": {
        **QUIET, "crop_scale": (0.2, 1.0), "flip": True, "turn": True, "jitter": (0.2, 0.2, 0.0, 0.0), "stain": 0.1,
    },
}  # fmt: skip
"""natural: a preset's own views. medical: large crops, light changes of grey, and no mirroring,
which swaps the sides of a body, nor blur, which removes what a finding is made of. satellite and
microscopy: all turns and mirrorings, since nothing has an up; no saturation or hue."""


def views_of(config: Any, name: str) -> dict[str, Any]:
    """The fields of `config` that the views `name` set, and their values.

    Raises ConfigError for a config without views of pictures, and for one that cannot take turns.
    """
    known = {field.name for field in fields(config)}
    kind = type(config).__name__
    if "crop_scale" not in known and "global_scale" not in known:
        raise ConfigError(f"views = {name!r}: {kind} draws no views of pictures")
    if VIEWS[name].get("turn") and "turn" not in known:
        what = f"views = {name!r}: these turn and mirror pictures, which {kind} cannot take:"
        raise ConfigError(f"{what} its task depends on what is up, or left; choose another method")
    if "flip" not in known:  # its crops are all that it draws: a caption tells of the whole picture
        return {}
    found = {}
    for field, value in VIEWS[name].items():
        if field in known:
            now = getattr(config, "blurs" if field == "blur_p" and hasattr(config, "blurs") else field)
            if isinstance(value, float) and isinstance(now, tuple):  # one for each view
                value = (value,) * len(now)
            elif isinstance(value, tuple) and isinstance(now, float):  # one for colours too
                value = 0.0
            found[field] = value
    return found


def with_views(config: C, name: str) -> C:
    """`config` with the views natural, medical, satellite or microscopy."""
    return replace(config, **views_of(config, name))  # type: ignore[type-var]
