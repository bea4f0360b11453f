"""Rotation prediction (RotNet, arXiv 1803.07728): pretraining, evaluation, weights.

from ssl_beit import RotNet, RotNetConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_beit.config import RotNetConfig
    from ssl_beit.rotation import RotNet, four_rotations, rotation_loss, train

__version__ = version("ssl-beit")
__all__ = ["RotNet", "RotNetConfig", "four_rotations", "rotation_loss", "train"]

_HOME = {"RotNetConfig": "ssl_beit.config"} | dict.fromkeys(
    ("RotNet", "four_rotations", "rotation_loss", "train"), "ssl_beit.rotation"
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_beit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
