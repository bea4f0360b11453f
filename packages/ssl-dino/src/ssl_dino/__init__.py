"""Rotation prediction (RotNet, arXiv 1803.07728): pretraining, evaluation, weights.

from ssl_dino import RotNet, RotNetConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_dino.config import RotNetConfig
    from ssl_dino.rotation import RotNet, four_rotations, rotation_loss, train

__version__ = version("ssl-dino")
__all__ = ["RotNet", "RotNetConfig", "four_rotations", "rotation_loss", "train"]

_HOME = {"RotNetConfig": "ssl_dino.config"} | dict.fromkeys(
    ("RotNet", "four_rotations", "rotation_loss", "train"), "ssl_dino.rotation"
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_dino' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
