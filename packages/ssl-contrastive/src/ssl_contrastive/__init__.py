"""Contrastive and self-distilling pretraining: SimCLR (arXiv 2002.05709), MoCo (arXiv 1911.05722, 2003.04297),
BYOL (arXiv 2006.07733) and SimSiam (arXiv 2011.10566).

from ssl_contrastive import SimCLR, SimCLRConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_contrastive.byol import BYOL, byol_loss
    from ssl_contrastive.config import BYOLConfig, MoCoConfig, SimCLRConfig, SimSiamConfig
    from ssl_contrastive.moco import MoCo, info_nce_loss
    from ssl_contrastive.simclr import SimCLR, nt_xent_loss
    from ssl_contrastive.simsiam import SimSiam, simsiam_loss
    from ssl_contrastive.training import train

__version__ = version("ssl-contrastive")
__all__ = [
    "BYOL", "BYOLConfig", "MoCo", "MoCoConfig", "SimCLR", "SimCLRConfig", "SimSiam", "SimSiamConfig",
    "byol_loss", "info_nce_loss", "nt_xent_loss", "simsiam_loss", "train",
]  # fmt: skip

_HOME = {
    "byol": ("BYOL", "byol_loss"),
    "moco": ("MoCo", "info_nce_loss"),
    "simclr": ("SimCLR", "nt_xent_loss"),
    "simsiam": ("SimSiam", "simsiam_loss"),
    "config": ("BYOLConfig", "MoCoConfig", "SimCLRConfig", "SimSiamConfig"),
    "training": ("train",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"ssl_contrastive.{module}"), name)
    raise AttributeError(f"module 'ssl_contrastive' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
