"""The flags of the commands that only this package has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ssl_core.bounds import Checked, Count, Portion
from ssl_core.config import check
from ssl_core.method import Verb


@dataclass(frozen=True)
class Attention(Checked):
    """Draw what a ViT attends to in pictures: maps per head, masks, patch features as colours,
    correspondences."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """picture files"""
    weights: str
    """run folder, Hub id or checkpoint file"""
    match: str | None = None
    """another picture: draw which patches of the first correspond to which of it"""
    mass: Portion = 0.6
    """share of the attention that a mask holds"""
    block: int = -1
    """which block, counted from 0 or from the end"""
    size: Count | None = None
    """pixels of the shorter side; the picture's own by default, at most 480"""
    out: str = "attention"
    """folder of the pictures"""
    max_pixels: Count | None = None
    """refuse images of more pixels; by default as in training"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.images) > 0, "images", self.images, "give at least one picture")


VERBS = {"attention": Verb("ssl_dino.verbs:Attention", "ssl_dino.attention:run")}
