"""From a photograph of 12 megapixels to views of 224 pixels: ours, torchvision's and lightly's.

Ours decodes as far as the views need (`Encoded`), or the whole picture, as `--exact-decode` does.
torchvision reads the file by its own decoder and works on uint8 tensors, its fastest way. All end
with bytes but lightly, whose views are normalised floats. The photographs are made here, with a
spectrum like that of real ones.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Case, Work
from PIL import Image
from torch import Tensor
from views import DINO, SIMCLR, dino, simclr

from ssl_train.data.images import encoded_or, read_image
from ssl_train.data.views import Augment

IMAGES = 4
HEIGHT, WIDTH = 3000, 4000
MAE = [Augment(size=(224, 224), scale=(0.2, 1.0))]


def main() -> None:
    flags = measure.parser(__doc__)
    chosen = measure.settings(flags.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        for number in range(IMAGES):
            Image.fromarray(photograph(number)).save(Path(folder, f"{number}.jpg"), quality=90)
        for title, views, theirs in (
            ("a view of MAE", MAE, mae), ("two views of SimCLR", SIMCLR, simclr), ("2 + 8 views of DINO", DINO, dino),
        ):  # fmt: skip
            results = measure.race(
                [
                    Case("ours", ours, (folder, views, False)),
                    Case("ours, --exact-decode", ours, (folder, views, True)),
                    Case("torchvision v2, uint8 tensors", torchvision, (folder, views)),
                    Case("lightly", lightly, (folder, theirs), ("lightly",)),
                ],
                chosen,
            )
            for result in results:
                if not result.missing:
                    seconds = statistics.median(result.seconds(chosen.clock)) / IMAGES
                    result.facts |= {"ms/image": f"{seconds * 1e3:.1f}", "images/s": f"{1 / seconds:.1f}"}
            measure.report(f"{title}, {IMAGES} JPEG files of {WIDTH} x {HEIGHT}", results, chosen)


def photograph(seed: int) -> np.ndarray:
    """uint8 (h, w, c): noise whose amplitude falls with its frequency, as in photographs."""
    rng, total = np.random.default_rng(seed), np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for size in (4, 8, 16, 32, 64, 128, 256, 512):
        noise = rng.normal(size=(HEIGHT // size + 2, WIDTH // size + 2, 3)).astype(np.float32)
        bands = [
            Image.fromarray(noise[..., band]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for band in range(3)
        ]
        total += np.stack([np.asarray(band) for band in bands], -1) * size**0.8
    return np.clip((total - total.mean()) / total.std() * 50 + 128, 0, 255).astype(np.uint8)


def ours(folder: str, views: list[Augment], exact: bool) -> Work:
    files, rng = sorted(Path(folder).iterdir()), np.random.default_rng(0)

    def run() -> Iterator[str]:
        for file in files:
            image = (
                read_image(file)
                if exact
                else encoded_or(file, 3, 10**9, lambda file=file: {"image": read_image(file)})["image"]
            )
            for augment in views:
                augment(image, rng)
        yield "decode + views"

    return Work(run)


def torchvision(folder: str, views: list[Augment]) -> Work:
    import torch
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    def view(augment: Augment) -> Any:
        steps: list[Any] = [
            v2.RandomResizedCrop(augment.size, scale=augment.scale, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
        if any(augment.jitter):
            steps.append(v2.RandomApply([v2.ColorJitter(*augment.jitter)], augment.jitter_p))
        for p, step in (
            (augment.grayscale_p, v2.Grayscale(3)),
            (augment.blur_p, v2.GaussianBlur(int(0.1 * augment.size[0]) // 2 * 2 + 1, augment.blur_sigma)),
            (augment.solarize_p, v2.RandomSolarize(128, p=1.0)),
        ):
            steps += [v2.RandomApply([step], p)] if p else []
        return v2.Compose(steps)

    files, transforms = sorted(Path(folder).iterdir()), [view(augment) for augment in views]
    torch.manual_seed(0)

    def run() -> Iterator[str]:
        for file in files:
            image = decode_jpeg(read_file(str(file)))
            for transform in transforms:
                transform(image)
        yield "decode + views"

    return Work(run)


def lightly(folder: str, make: Callable[[], Callable[[Any], list[Tensor]]]) -> Work:
    import torch

    files, transform = sorted(Path(folder).iterdir()), make()
    torch.manual_seed(0)

    def run() -> Iterator[str]:
        for file in files:
            transform(Image.open(file).convert("RGB"))
        yield "decode + views"

    return Work(run)


def mae() -> Any:
    from lightly.transforms import MAETransform

    return MAETransform(input_size=224)


if __name__ == "__main__":
    main()
