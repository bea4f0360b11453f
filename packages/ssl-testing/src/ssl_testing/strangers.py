"""Folders as strangers have them: few or many pictures, of any size and kind, labelled or not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Stranger(NamedTuple):
    """What a folder holds."""

    number: int
    sides: tuple[int, int]
    """the shortest and the longest side of the pictures in pixels; each picture has its own"""
    kind: str
    """a mode of Pillow; "mixed" takes several by turns"""
    classes: int
    """sub-folders; 0 for none"""


SMALL, MEDIUM, LARGE = (16, 31), (40, 130), (16, 3000)
STRANGERS: dict[str, Stranger] = {
    "12 large grey": Stranger(12, LARGE, "L", 0),
    "100 medium grey of one class": Stranger(100, MEDIUM, "L", 1),
    "480 small grey in 30 classes": Stranger(480, SMALL, "L", 30),
    "12 medium RGBA in 6 classes": Stranger(12, MEDIUM, "RGBA", 6),
    "100 small RGBA": Stranger(100, SMALL, "RGBA", 0),
    "480 large RGBA of one class": Stranger(480, LARGE, "RGBA", 1),
    "12 small palette of one class": Stranger(12, SMALL, "P", 1),
    "100 large palette in 30 classes": Stranger(100, LARGE, "P", 30),
    "480 medium palette": Stranger(480, MEDIUM, "P", 0),
    "12 large 16-bit": Stranger(12, LARGE, "I;16", 0),
    "100 medium 16-bit of one class": Stranger(100, MEDIUM, "I;16", 1),
    "480 small 16-bit in 30 classes": Stranger(480, SMALL, "I;16", 30),
    "12 large mixed of one class": Stranger(12, LARGE, "mixed", 1),
    "100 medium mixed in 30 classes": Stranger(100, MEDIUM, "mixed", 30),
    "480 small mixed": Stranger(480, SMALL, "mixed", 0),
}
"""Every pair of two properties is in one of these folders, in as few folders as that takes: five
kinds times three of each other property. A package's tests run a few of them, all packages together
run all, and tools/strangers.py runs all for every method."""
MIXED = ("RGB", "L", "RGBA", "P", "1", "CMYK")
"""Modes by turns; CMYK is written as JPEG."""


def write_strangers(folder: Path, stranger: Stranger) -> None:
    """Write pictures of smooth colours into as many sub-folders as there are classes.

    Among LARGE pictures one has 3,000 x 2,000 pixels, every tenth is a strip of 3,000 x 16, and the
    others have at most 130 on a side: decoding more large ones would take the time of a test.
    """
    rng = np.random.default_rng(0)
    low, high = stranger.sides
    for index in range(stranger.number):
        width, height = rng.integers(low, min(high, MEDIUM[1]), size=2, endpoint=True).tolist()
        if stranger.sides == LARGE and index % 10 == 5:
            width, height = (high, 2000) if index == 5 else (high, low)
        mode = MIXED[index % len(MIXED)] if stranger.kind == "mixed" else stranger.kind
        place = folder / f"class {index % stranger.classes}" if stranger.classes else folder
        place.mkdir(parents=True, exist_ok=True)
        if mode == "I;16":
            noise = Image.fromarray(rng.integers(0, 65536, (4, 4), dtype=np.uint16).astype(np.int32))
            deep = np.asarray(noise.resize((width, height), Image.Resampling.BILINEAR)).astype(np.uint16)
            picture = Image.fromarray(deep)
        else:
            noise = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            picture = noise.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        name = f"picture {index}"
        if mode == "CMYK":
            picture.save(place / f"{name}.jpg")
        else:
            picture.save(place / f"{name}.png", compress_level=1)
