"""Rotation prediction (RotNet, arXiv 1803.07728): pretraining, evaluation, weights.

from ssl_template import RotNet, RotNetConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_template.config import RotNetConfig
    from ssl_template.rotation import RotNet, four_rotations, rotation_loss
    from ssl_template.training import train

__version__ = version("ssl-template")
__all__ = ["RotNet", "RotNetConfig", "four_rotations", "rotation_loss", "train"]

_HOME = {"RotNetConfig": "ssl_template.config", "train": "ssl_template.training"} | dict.fromkeys(
    ("RotNet", "four_rotations", "rotation_loss"), "ssl_template.rotation"
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_template' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
