"""CLIP: image and text in one space: training, zero-shot classification, search, weights.

from ssl_clip import CLIP, CLIPConfig, ZeroShotClassifier, ImageIndex, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_clip.classify import ZeroShotClassifier
    from ssl_clip.clip import CLIP, clip_loss
    from ssl_clip.config import CLIPConfig
    from ssl_clip.index import ImageIndex
    from ssl_clip.map import embedding_map, modality_gap
    from ssl_clip.measure import retrieval
    from ssl_clip.siglip import siglip_loss
    from ssl_clip.tokenizer import Tokenizer
    from ssl_clip.training import train

__version__ = version("ssl-clip")
__all__ = [
    "CLIP", "CLIPConfig", "ImageIndex", "Tokenizer", "ZeroShotClassifier", "clip_loss", "embedding_map", "modality_gap",
    "retrieval", "siglip_loss", "train",
]  # fmt: skip

_HOME = {
    "CLIP": "clip", "CLIPConfig": "config", "ImageIndex": "index", "Tokenizer": "tokenizer",
    "ZeroShotClassifier": "classify", "clip_loss": "clip", "embedding_map": "map", "modality_gap": "map",
    "retrieval": "measure", "siglip_loss": "siglip", "train": "training",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_clip' has no attribute {name!r}")
    return getattr(import_module(f"ssl_clip.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
