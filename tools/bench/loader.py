"""From a JPEG file to MAE's view: images per second, ours, torchvision's and lightly's.

One process reads the files. All crop 20 to 100 % of the area, resize to 224 pixels with bicubic
interpolation, flip and normalise. Ours passes bytes on and normalises the batch where the model is;
that time is included. The files are made here, 500 x 375 pixels with grain. ImageNet's are larger,
so there decoding, which all share, takes a larger part of the time.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from measure import Case, Work
from PIL import Image
from torch import Tensor

from ssl_core.pixels import normalize
from ssl_mae.config import MAEConfig
from ssl_mae.views import build as build_view
from ssl_train.data.images import read_image

CONFIG = MAEConfig()
IMAGES = 64


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder whose wait for data is read")
    args = flags.parse_args()
    chosen = measure.settings(args)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        results = measure.race(
            [
                Case("ours", build, (ours, folder)),
                Case("torchvision v1, PIL", build, (partial(torchvision, "v1"), folder), ("torchvision",)),
                Case("torchvision v2, PIL", build, (partial(torchvision, "v2-pil"), folder), ("torchvision",)),
                Case("torchvision v2, uint8 tensor", build, (partial(torchvision, "v2"), folder), ("torchvision",)),
                Case("lightly MAETransform", build, (lightly, folder), ("lightly",)),
            ],
            chosen,
        )
    for result in results:
        if not result.missing:
            result.facts["images/s"] = f"{IMAGES / statistics.median(result.seconds(chosen.clock)):.0f}"
    measure.report(f"MAE view of {IMAGES} JPEG files, 500 x 375", results, chosen)
    print(f"\n{waiting(args.run)}")


def write_images(folder: Path, number: int = IMAGES) -> None:
    """Smooth colours with grain: about 80 KB per file, like photographs of this size."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse = coarse.resize((500, 375), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (375, 500, 1))
        image = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i:04d}.jpg", quality=88)


def build(make: Callable[[], tuple[Callable[[Path], Any], Callable[[list[Any]], Tensor]]], folder: str) -> Work:
    """Apply `view` to each file, then `collate` to all of them."""
    files = sorted(Path(folder).glob("*.jpg"))
    view, collate = make()
    sizes = statistics.mean(file.stat().st_size for file in files)

    def run() -> Iterator[str]:
        views = [view(file) for file in files]
        yield "decode + view"
        collate(views)
        yield "batch"

    return Work(run, {"KB/file": f"{sizes / 1e3:.0f}"})


def ours() -> tuple[Callable[[Path], Any], Callable[[list[Any]], Tensor]]:
    view, rng = build_view(CONFIG), np.random.default_rng(0)

    def one(file: Path) -> Tensor:
        return view({"image": read_image(file)}, rng)["views"][0]

    return one, lambda views: normalize(torch.stack(views), CONFIG.mean, CONFIG.std)


def torchvision(kind: str) -> tuple[Callable[[Path], Any], Callable[[list[Any]], Tensor]]:
    from torchvision import io, transforms
    from torchvision.transforms import v2

    api: Any = transforms if kind == "v1" else v2
    crop = api.RandomResizedCrop(224, scale=CONFIG.crop_scale, interpolation=api.InterpolationMode.BICUBIC)
    scale = [api.ToTensor()] if kind == "v1" else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = api.Compose([crop, api.RandomHorizontalFlip(), *scale, api.Normalize(CONFIG.mean, CONFIG.std)])
    torch.manual_seed(0)
    if kind == "v2":
        return lambda file: transform(io.decode_image(str(file), io.ImageReadMode.RGB)), torch.stack
    return lambda file: transform(Image.open(file).convert("RGB")), torch.stack


def lightly() -> tuple[Callable[[Path], Any], Callable[[list[Any]], Tensor]]:
    from lightly.transforms.mae_transform import MAETransform

    transform = MAETransform()
    torch.manual_seed(0)
    return lambda file: transform(Image.open(file).convert("RGB"))[0], torch.stack


def waiting(run: Path) -> str:
    """The share of time that a run waited for data, from its own log."""
    log = run / "metrics.jsonl"
    if not log.exists():
        return f"{log} is not there: run `tox -e demo` first, or name a run with --run"
    shares = [line["data_wait"] for line in map(json.loads, log.read_text("utf-8").splitlines()) if "data_wait" in line]
    return (
        f"{run} waited for data {statistics.median(shares):.1%} of the time "
        f"(median of {len(shares)} lines of metrics.jsonl; mean {statistics.mean(shares):.1%}, most {max(shares):.1%})"
    )


if __name__ == "__main__":
    main()
