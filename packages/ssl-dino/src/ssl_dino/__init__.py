"""Self-distillation with no labels: DINO's pretraining (arXiv 2104.14294), DINOv2 (arXiv 2304.07193) as an encoder.

from ssl_dino import DINO, DINOConfig, DINOv2, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_dino.attention import mass_mask, pca_colours
    from ssl_dino.config import DINOConfig, DINOv2Config
    from ssl_dino.dino import DINO
    from ssl_dino.dinov2 import DINOv2
    from ssl_dino.loss import dino_loss
    from ssl_dino.training import train

__version__ = version("ssl-dino")
__all__ = ["DINO", "DINOConfig", "DINOv2", "DINOv2Config", "dino_loss", "mass_mask", "pca_colours", "train"]

_HOME = {
    "DINO": "ssl_dino.dino",
    "DINOConfig": "ssl_dino.config",
    "DINOv2": "ssl_dino.dinov2",
    "DINOv2Config": "ssl_dino.config",
    "dino_loss": "ssl_dino.loss",
    "mass_mask": "ssl_dino.attention",
    "pca_colours": "ssl_dino.attention",
    "train": "ssl_dino.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_dino' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
