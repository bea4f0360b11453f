"""Pictures of what a network attends to, and of the features of its patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.pixels import as_float
from ssl_dino.maps import heat, mass_mask, overlay, pca_colours
from ssl_train.data.pictures import rgb, sample_images, save_grid

ROWS, COLUMNS, MASS = 8, 2, 0.6


def show(method: Any, source: Any, folder: Path) -> dict[str, str]:
    """Write patches.png and, for a ViT, attention.png. Return {file name: caption}."""
    device = next(method.parameters()).device
    images = sample_images(source, method.config, ROWS * COLUMNS).to(device)
    captions = {}

    # A ResNet has no attention to show.
    if hasattr(method.encoder, "attention_maps"):
        block, share = method.config.depth - 1, f"{MASS:.0%} of it"
        titles = ("image", f"CLS, block {block}, mean of heads", f"patches with {share}")
        save_grid(attended(method, images), folder / "attention.png", columns=COLUMNS, titles=titles)
        captions["attention.png"] = (
            f"image | attention of CLS in block {block}, the last, mean of its heads | the patches with {share}"
        )
    colours = pca_colours(method.patch_features(images))  # b 3 h' w'
    pictures = torch.stack([rgb(as_float(images)), F.interpolate(colours, images.shape[-2:])], 1)  # b 2 3 h w
    save_grid(pictures, folder / "patches.png", columns=COLUMNS, titles=("image", "patch features"))
    captions["patches.png"] = "image | first three principal components of the patch features of all images as colours"
    return captions


def attended(method: Any, images: Tensor) -> Tensor:
    """(b, 3, 3, h, w) in [0, 1]: image, mean attention map, and the image with all but the attended
    patches dimmed."""
    maps = method.attention_maps(images).float().mean(1, keepdim=True)  # b 1 h' w'
    shown = rgb(as_float(images))  # b 3 h w
    return torch.stack([shown, heat(maps, images.shape[-2:]), overlay(shown, mass_mask(maps, MASS))], 1)
