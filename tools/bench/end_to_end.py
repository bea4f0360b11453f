"""From a folder of JPEG files to weights: `ssl-contrastive train` and a script of lightly's parts.

Both train SimCLR on a ResNet-18 with the same recipe, batch and number of steps. They load images
in the training process, so its CPU seconds are the whole cost. Ours includes what the command does
besides the steps: the folder's index, k-NN accuracy, metrics and checkpoints. lightly's is its
example (examples/pytorch/simclr.py), which saves its weights at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import measure
import torch
from loader import write_images
from measure import Case, Work
from step import follow
from torch import nn

from ssl_contrastive.config import RECIPES, SimCLRConfig
from ssl_train.options import RunOptions
from ssl_train.run import train


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--images", type=int, default=512, help="files of 500 x 375")
    flags.add_argument("--size", type=int, default=128, help="pixels of a view")
    flags.add_argument("--batch", type=int, default=64, help="images of a step")
    args = flags.parse_args()
    chosen = measure.settings(args)
    config = SimCLRConfig(
        backbone="resnet18",
        image_size=args.size,
        batch_size=args.batch,
        optimizer="sgd",
        base_lr=0.2,
        epochs=1,
        warmup_epochs=0,
        precision="fp32",
        temperature=0.5,
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "photos"
        files.mkdir()
        write_images(files, args.images)
        cases = [
            Case("ours", build, (ours, folder, config)),
            Case("lightly", build, (lightly, folder, config), ("lightly", "torchvision")),
        ]
        results = measure.race(cases, chosen)
    title = f"SimCLR, {args.images} JPEG files, ResNet-18 at {args.size} pixels, batch {args.batch}, one epoch"
    measure.report(title, results, chosen)


def build(run: Callable[[Path, SimCLRConfig], None], folder: str, config: SimCLRConfig) -> Work:
    def once() -> Iterator[str]:
        run(Path(folder), config)
        yield "one epoch"

    return Work(once)


def ours(folder: Path, config: SimCLRConfig) -> None:
    out = folder / f"run-{os.getpid()}"
    train(RECIPES["simclr"], config, data=folder / "photos", out=out, options=RunOptions(workers=0))
    shutil.rmtree(out)


def lightly(folder: Path, config: SimCLRConfig) -> None:
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    resnet = torchvision.models.resnet18()
    resnet.fc = nn.Identity()
    model = nn.Sequential(resnet, SimCLRProjectionHead(512, 512, config.projection)).train()
    data = LightlyDataset(str(folder / "photos"), transform=SimCLRTransform(input_size=config.image_size))
    loader = torch.utils.data.DataLoader(data, config.batch_size, shuffle=True, drop_last=True)
    criterion = NTXentLoss(temperature=config.temperature)
    lr = config.base_lr * config.batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
    for (first, second), *_ in loader:
        criterion(model(first), model(second)).backward()
        follow(optimizer)
        schedule.step()
    torch.save(model.state_dict(), folder / "lightly.pt")


if __name__ == "__main__":
    main()
