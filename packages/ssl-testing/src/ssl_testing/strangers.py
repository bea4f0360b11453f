"""Folders as strangers have them: few or many pictures, of any size and kind, labelled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STRANGERS: dict[str, dict[str, Any]] = {
    "a dozen tiny grey ones": {"number": 12, "sides": (16, 31), "modes": ("L",), "classes": 0},
    "a hundred of one class": {"number": 100, "sides": (40, 130), "modes": ("RGBA", "P"), "classes": 1},
    "all kinds in many classes": {"number": 120, "sides": (17, 300), "modes": ("RGB", "L", "RGBA", "1"), "classes": 30},
    "480 and a huge one": {"number": 480, "sides": (100, 110), "modes": ("RGB",), "classes": 0, "huge": (3000, 2000)},
}
"""The pairs of properties that a folder may have, in four folders."""


def write_strangers(
    folder: Path,
    *,
    number: int,
    sides: tuple[int, int],
    modes: tuple[str, ...],
    classes: int,
    huge: tuple[int, int] | None = None,
) -> None:
    """Write `number` pictures of smooth colours with sides in `sides`, in the modes of Pillow by
    turns, into as many sub-folders as there are classes; one is `huge`."""
    rng = np.random.default_rng(0)
    for index in range(number):
        width, height = rng.integers(*sides, size=2, endpoint=True).tolist()
        noise = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        size = huge if huge is not None and index == number // 2 else (width, height)
        picture = noise.resize(size, Image.Resampling.BICUBIC).convert(modes[index % len(modes)])
        place = folder / f"class {index % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"picture {index}.png", compress_level=1)
