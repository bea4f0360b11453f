"""Masked autoencoders (MAE, arXiv 2111.06377): pretraining, evaluation, weights.

from ssl_mae import MAE, MAEConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_mae.config import MAEConfig
    from ssl_mae.mae import MAE, Reconstruction, mae_loss, random_masking
    from ssl_mae.training import train

__version__ = version("ssl-mae")
__all__ = ["MAE", "MAEConfig", "Reconstruction", "mae_loss", "random_masking", "train"]

_HOME = {"MAEConfig": "ssl_mae.config", "train": "ssl_mae.training"} | dict.fromkeys(
    ("MAE", "Reconstruction", "mae_loss", "random_masking"), "ssl_mae.mae"
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_mae' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
