"""From a JPEG file to the views of SimCLR and DINO: time per image, ours and lightly's.

Both decode the file. lightly's views are normalised floats. Ours stay bytes until the batch is
where the model is; `normalise` is the cost of that step on the CPU. The files are those of
`loader`, 500 x 375 pixels with grain.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from loader import write_images
from measure import Case, Work
from PIL import Image
from torch import Tensor

from ssl_core.config import IMAGENET_MEAN, IMAGENET_STD
from ssl_core.pixels import normalize
from ssl_train.data.images import faster_jpeg, read_image
from ssl_train.data.views import Augment, natural

IMAGES = 32
JITTER = (0.4, 0.4, 0.2, 0.1)  # DINO's; gray .2 and blur as in its appendix
GLOBAL = dict(size=(224, 224), scale=(0.4, 1.0), jitter=JITTER, grayscale_p=0.2)
SIMCLR = [natural((224, 224))] * 2
DINO = [
    Augment(**GLOBAL, blur_p=1.0),
    Augment(**GLOBAL, blur_p=0.1, solarize_p=0.2),
    *[Augment(size=(96, 96), scale=(0.05, 0.4), jitter=JITTER, grayscale_p=0.2, blur_p=0.5)] * 8,
]


def main() -> None:
    flags = measure.parser(__doc__)
    chosen = measure.settings(flags.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for title, views, theirs in (("two views of SimCLR", SIMCLR, simclr), ("2 + 8 views of DINO", DINO, dino)):
            results = measure.race(
                [
                    Case("ours", ours, (folder, views, True)),
                    Case("ours, decoded by Pillow", ours, (folder, views, False)),
                    Case("lightly", lightly, (folder, theirs), ("lightly",)),
                ],
                chosen,
            )
            for result in results:
                if not result.missing:
                    seconds = statistics.median(result.seconds(chosen.clock)) / IMAGES
                    result.facts |= {"ms/image": f"{seconds * 1e3:.2f}", "images/s": f"{1 / seconds:.0f}"}
            measure.report(f"{title}, {IMAGES} JPEG files of 500 x 375", results, chosen)


def ours(folder: str, views: list[Augment], torchvision: bool) -> Work:
    if torchvision:
        faster_jpeg()
    files, rng = _files(folder), np.random.default_rng(0)

    def run() -> Iterator[str]:
        made = []
        for file in files:
            image = read_image(file)
            made.append([augment(image, rng) for augment in views])
        yield "decode + views"
        for view in zip(*made, strict=True):
            normalize(torch.stack(view), IMAGENET_MEAN, IMAGENET_STD)
        yield "normalise"

    return Work(run)


def lightly(folder: str, make: Callable[[], Callable[[Any], list[Tensor]]]) -> Work:
    files, transform = _files(folder), make()
    torch.manual_seed(0)

    def run() -> Iterator[str]:
        made = [transform(Image.open(file).convert("RGB")) for file in files]
        yield "decode + views"
        for view in zip(*made, strict=True):
            torch.stack(view)
        yield "normalise"

    return Work(run)


def simclr() -> Any:
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(input_size=224)


def dino() -> Any:
    from lightly.transforms import DINOTransform

    return DINOTransform(n_local_views=8)


def _files(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.jpg"))[:IMAGES]


if __name__ == "__main__":
    main()
