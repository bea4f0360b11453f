"""Pictures of what a masked autoencoder sees and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core.patches import patchify, unpatchify
from ssl_core.pixels import as_float
from ssl_mae.mae import MAE
from ssl_train.data.pictures import sample_images, save_grid

ROWS, COLUMNS = 8, 2
GREY = 0.5


def show(method: MAE, source: Any, folder: Path) -> dict[str, str]:
    """Write reconstructions.png: original | masked | reconstruction. Returns {name: caption}."""
    images = sample_images(source, method.config, ROWS * COLUMNS)
    triples = reconstructions(method, images.to(next(method.parameters()).device))
    titles = ("original", "masked", "reconstruction")
    save_grid(triples, folder / "reconstructions.png", columns=COLUMNS, titles=titles)
    share = f"{method.config.mask_ratio:.0%}"
    return {"reconstructions.png": f"original | masked | reconstruction, {share} of the patches removed"}


def reconstructions(method: MAE, images: Tensor, seed: int = 0) -> Tensor:
    """(b, 3, c, h, w) in [0, 1]: original, masked and reconstructed, for uint8 images (b, c, h,
    w)."""
    p = method.config.patch_size
    grid = (images.shape[2] // p, images.shape[3] // p)
    noise = torch.rand(len(images), grid[0] * grid[1], generator=torch.Generator().manual_seed(seed)).to(images.device)
    result = method.reconstruct(images, noise=noise)
    original = as_float(images)
    hidden = torch.where(result.mask[..., None] > 0, GREY, patchify(original, p))
    return torch.stack([original, unpatchify(hidden, p, grid), result.image], 1)
