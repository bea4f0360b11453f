"""Pretrain a masked autoencoder on a folder of images, and look at what it learned.

    tox -e demo                     the built-in scenes, as PNG files
    tox -e demo -- --data photos    crops of real photographs, as JPEG files

Each step is a command that you could type yourself; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from ssl_mae import MAE
from ssl_train.data import photos, scenes
from ssl_train.data.sources import open_source

SIZE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("scenes", "photos"), default="scenes", help="what the folder holds")
    parser.add_argument("--out", type=Path, help="run folder; runs/demo or runs/photos by default")
    parser.add_argument("--epochs", type=float, help="passes over the images")
    args = parser.parse_args()
    out = args.out or Path("runs") / ("demo" if args.data == "scenes" else "photos")
    start = time.perf_counter()

    folder = write_images(args.data, out.parent / f"{out.name}-images")
    print(f"{folder}: {sum(1 for path in folder.rglob('*.*'))} image files\n")
    settings = ["--epochs", f"{args.epochs:g}"] if args.epochs else []
    command("train", "--data", str(folder), "--preset", "demo", "--out", str(out), *settings)
    command("evaluate", str(out), "--data", str(folder))

    model = MAE.from_pretrained(out)
    check_reload(model, out, folder)
    print(f'\nMAE.from_pretrained("{out}") gives the features of the trained network, bit for bit')
    print(f"{time.perf_counter() - start:.0f} seconds in all\n")
    print(f"look at  {out / 'report.html'}")
    print(f"         {out / 'figures' / 'reconstructions.png'}")
    print("next     ssl-mae train --data your/folder --preset vit_small --out runs/mine")
    print(f"         ssl-mae push {out} you/{out.name}")


def write_images(data: str, folder: Path) -> Path:
    """Write train and test images into class folders, unless the folders exist."""
    print(f"writing {data} into {folder}")
    for split, number, seed in (("train", 8000, 0), ("test", 2000, 1)):
        if (folder / split).exists():
            continue
        if data == "scenes":
            scenes.write_folder(folder / split, number, seed, SIZE)
        else:
            photos.write_folder(folder / split, number // 2, split, SIZE)
    return folder


def command(*arguments: str) -> None:
    print(f"\n$ ssl-mae {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "ssl_mae", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


@torch.inference_mode()
def check_reload(model: MAE, out: Path, folder: Path) -> None:
    """Exit unless the published weights give the features of the last checkpoint."""
    source = open_source(folder, split="test")
    images = torch.stack([source.load(i)["image"] for i in range(64)])
    last = max((out / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    trained = MAE(model.config).eval()
    trained.load_state_dict(load_file(last / "model.safetensors"))
    if not torch.equal(trained.encode(images), model.encode(images)):
        sys.exit(f"{out} does not give the features of {last}")


if __name__ == "__main__":
    main()
