"""`photos`: crops of the photographs that scikit-image and scikit-learn carry in their wheels.

Real pixels without a network: the files are read from the installed packages, neither of which is
imported (scikit-image would fetch what it lacks). The label is the photograph. Training crops come
from the left half of each picture, test crops from the right one. Sixteen photographs say little
about a method, and colour alone tells many of them apart: a demo and a smoke test, no benchmark.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ssl_core.errors import DataError
from ssl_train.data import images

# Name -> (package, file in it). Alphabetical, so that a written folder gets the same labels.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
CLASSES = tuple(PHOTOGRAPHS)
_SPLITS = ("train", "test")


class Photos:
    """`number` square crops as a source (see `ssl_train.data.sources`), cut when loaded.

    A crop's side is .35 to .80 of its half picture's shorter side, resized to `size` pixels. Three
    channels are the picture's own colours. One channel is the smoke-test variant: luma of mean 128
    and standard deviation 48 in every crop, so that brightness and contrast tell no class.
    Raises DataError where an installed package or file is missing.
    """

    def __init__(self, number: int, split: str, size: int, channels: int = 3) -> None:
        if split not in _SPLITS or channels not in (1, 3):
            what = f"photos have the splits 'train' and 'test' and 1 or 3 channels, not {split!r} and {channels}"
            raise DataError(what)
        self.number, self.split, self.size, self.channels = number, split, size, channels
        for name in CLASSES:
            _file(name)
        self.classes = list(CLASSES)
        self.labels = np.arange(number, dtype=np.int64) % len(CLASSES)

    def __len__(self) -> int:
        return self.number

    def load(self, index: int) -> dict[str, Any]:
        """{"image": uint8 (c, h, w)}"""
        crop = self.crop(range(self.number)[index])
        if self.channels == 3:
            return {"image": images.pillow_to_tensor(crop, 3)}
        luma = np.asarray(crop.convert("L"), dtype=np.float32)
        standard = (luma - luma.mean()) / max(luma.std(), 1.0)
        gray = np.clip(np.rint(128 + 48 * standard), 0, 255).astype(np.uint8)
        return {"image": torch.from_numpy(gray)[None]}

    def crop(self, index: int) -> Image.Image:
        """The crop in RGB, a function of split and index."""
        half = _half(CLASSES[self.labels[index]], self.split)
        draws = np.random.default_rng((_SPLITS.index(self.split), index)).random(3)
        side = round(min(half.size) * (0.35 + 0.45 * draws[0]))
        x, y = (int(u * (n - side + 1)) for u, n in zip(draws[1:], half.size, strict=True))
        box = (x, y, x + side, y + side)
        return half.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)

    def name(self, index: int) -> str:
        return f"photos/{self.split}/{CLASSES[self.labels[index]]}/{index:06d}"

    def fingerprint(self) -> str:
        key = f"photos {CLASSES} {self.number} {self.split} {self.size} {self.channels}"
        return hashlib.sha256(key.encode()).hexdigest()[:16]


def write_folder(
    path: str | os.PathLike[str], number: int, split: str, size: int, format: Literal["png", "jpeg"] = "jpeg"
) -> Path:
    """Write the first `number` colour crops of a split as `path/<photograph>/<index>.<format>`.

    A folder of that name is complete: it appears in one step. Raises DataError where it exists.
    """
    photos = Photos(number, split, size)
    crops = ((CLASSES[photos.labels[i]], np.asarray(photos.crop(i))) for i in range(number))
    return images.write_folder(path, crops, format)


def _file(name: str) -> Path:
    package, inside = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the photos come with scikit-image and scikit-learn, which are not both installed: "
            'pip install "ssl-train[photos]"'
        )
    file = Path(spec.submodule_search_locations[0], inside)
    if not file.is_file():
        raise DataError(
            f'the installed {package} has no {inside}: update it with pip install --upgrade "ssl-train[photos]"'
        )
    return file


@functools.cache
def _half(name: str, split: str) -> Image.Image:
    """The left (train) or right (test) half in RGB, cut out: resizing must not see the other."""
    pixels = images.read_image(_file(name), channels=3).permute(1, 2, 0).numpy()  # c h w -> h w c
    middle = pixels.shape[1] // 2
    half = pixels[:, :middle] if split == "train" else pixels[:, middle:]
    return Image.fromarray(np.ascontiguousarray(half))
