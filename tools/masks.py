"""What a ViT's attention finds: IoU of its 60 %-mass masks with the objects of the built-in scenes.

    python tools/masks.py runs/dino            a run folder of ssl-dino with a ViT

Measures the mask of the best head and that of the heads' mean. Baselines are five random
initialisations, which differ a lot, and a box in the middle. Head and box are chosen on other
scenes than those measured.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.device import seed_step
from ssl_dino import DINO, mass_mask
from ssl_train.data.scenes import render

CHOICE, TEST = 7001, 7002
"""Seeds of the scenes on which head and box are chosen, and of the scenes that are measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--mass", type=float, default=0.6)
    args = parser.parse_args()
    method = DINO.from_pretrained(args.weights)
    networks = {"pretrained": method}
    for seed in range(5):
        seed_step(seed)
        networks[f"random init, seed {seed}"] = DINO(method.config).eval()
    choice, test = (scenes(seed, args.scenes, method.config.size[0]) for seed in (CHOICE, TEST))
    print("| masks | mean of the heads | best head |\n| --- | --- | --- |")
    for name, network in networks.items():
        chosen, measured = (ious(network, images, objects, args.mass) for images, objects in (choice, test))
        best = int(chosen[:, :-1].mean(0).argmax())
        print(f"| {name} | {measured[:, -1].mean():.3f} | {measured[:, best].mean():.3f} |")
    side = max(range(2, choice[1].shape[-1] + 1, 2), key=lambda s: float(box_ious(choice[1], s).mean()))
    print(f"| box of {side} pixels in the middle | {box_ious(test[1], side).mean():.3f} | |")


def scenes(seed: int, number: int, size: int) -> tuple[Tensor, Tensor]:
    """(images uint8 (n, 3, h, w), where any object is, bool (n, h, w))."""
    made = [render(seed, index, size) for index in range(number)]
    images = torch.from_numpy(np.stack([scene.image for scene in made])).permute(0, 3, 1, 2)
    return images, torch.from_numpy(np.stack([scene.masks.any(0) for scene in made]))


@torch.inference_mode()
def ious(method: DINO, images: Tensor, objects: Tensor, mass: float) -> Tensor:
    """IoU (n, heads + 1) of each head's mask and, last, of the mask of their mean."""
    maps = torch.cat([method.attention_maps(part).float() for part in images.split(100)])
    masks = mass_mask(torch.cat([maps, maps.mean(1, keepdim=True)], 1), mass)
    return iou(F.interpolate(masks.float(), images.shape[-2:]) > 0, objects[:, None])


def box_ious(objects: Tensor, side: int) -> Tensor:
    """IoU (n,) of a square of `side` pixels in the middle."""
    size = objects.shape[-1]
    box, low = torch.zeros(size, size, dtype=torch.bool), (size - side) // 2
    box[low : low + side, low : low + side] = True
    return iou(box, objects)


def iou(a: Tensor, b: Tensor) -> Tensor:
    return (a & b).sum((-2, -1)) / (a | b).sum((-2, -1)).clamp(min=1)


if __name__ == "__main__":
    main()
