"""Pretext tasks: rotation, jigsaw puzzles, colorization, relative patch location. Pretraining, evaluation, weights.

from ssl_pretext import Rotation, RotationConfig, train
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_pretext.colorization import Colorization, colorization_loss
    from ssl_pretext.config import ColorizationConfig, JigsawConfig, RelativePatchConfig, RotationConfig
    from ssl_pretext.jigsaw import Jigsaw, jigsaw_loss
    from ssl_pretext.lab import lab_to_rgb, rgb_to_lab
    from ssl_pretext.permutations import permutation_set
    from ssl_pretext.relative_patch import RelativePatch, relative_patch_loss
    from ssl_pretext.rotation import Rotation, four_rotations, rotation_loss
    from ssl_pretext.training import train

__version__ = version("ssl-pretext")
_NAMES = {
    "colorization": ("Colorization", "colorization_loss"),
    "config": ("ColorizationConfig", "JigsawConfig", "RelativePatchConfig", "RotationConfig"),
    "jigsaw": ("Jigsaw", "jigsaw_loss"),
    "lab": ("lab_to_rgb", "rgb_to_lab"),
    "permutations": ("permutation_set",),
    "training": ("train",),
    "relative_patch": ("RelativePatch", "relative_patch_loss"),
    "rotation": ("Rotation", "four_rotations", "rotation_loss"),
}
_HOME = {name: f"ssl_pretext.{module}" for module, names in _NAMES.items() for name in names}
__all__ = [
    "Colorization", "ColorizationConfig", "Jigsaw", "JigsawConfig", "RelativePatch", "RelativePatchConfig", "Rotation",
    "RotationConfig", "colorization_loss", "four_rotations", "jigsaw_loss", "lab_to_rgb", "permutation_set",
    "relative_patch_loss", "rgb_to_lab", "rotation_loss", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_pretext' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
