"""Pictures of what a masked autoencoder sees and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ssl_core.data.images import BadSample, DataError
from ssl_core.data.views import eval_view
from ssl_core.patches import patchify, unpatchify
from ssl_mae.mae import MAE

ROWS, COLUMNS = 8, 2
GREY = 0.5


def show(method: MAE, source: Any, folder: Path) -> dict[str, str]:
    """Write reconstructions.png (original | masked | reconstruction) and return {file name: caption}."""
    images = _images(method, source, ROWS * COLUMNS)
    triples = reconstructions(method, images.to(next(method.parameters()).device))
    save_grid(triples, folder / "reconstructions.png")
    share = f"{method.config.mask_ratio:.0%}"
    return {"reconstructions.png": f"original | masked | reconstruction, {share} of the patches removed"}


def reconstructions(method: MAE, images: Tensor, seed: int = 0) -> Tensor:
    """(b, 3, c, h, w) in [0, 1]: original, masked and reconstructed, for uint8 images (b, c, h, w)."""
    p = method.config.patch_size
    grid = (images.shape[2] // p, images.shape[3] // p)
    noise = torch.rand(len(images), grid[0] * grid[1], generator=torch.Generator().manual_seed(seed)).to(images.device)
    result = method.reconstruct(images, noise=noise)
    original = images.float() / 255
    hidden = torch.where(result.mask[..., None] > 0, GREY, patchify(original, p))
    return torch.stack([original, unpatchify(hidden, p, grid), result.image], 1)


def save_grid(triples: Tensor, path: Path, *, columns: int = COLUMNS, scale_to: int = 96, gap: int = 6) -> None:
    """Write (b, k, c, h, w) pictures in [0, 1] as a white-framed grid, k beside each other, `columns` groups a row."""
    b, _, c, h, w = triples.shape
    zoom = max(1, round(scale_to / h))
    pictures = triples[: b - b % columns] if b >= columns else triples
    pixels = (pictures.cpu() * 255).round().to(torch.uint8)
    pixels = pixels[:, :, :3] if c >= 3 else pixels[:, :, :1].expand(-1, -1, 3, -1, -1)
    pixels = pixels.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    framed = torch.full((*pixels.shape[:3], h * zoom + gap, w * zoom + gap), 255, dtype=torch.uint8)
    framed[..., : h * zoom, : w * zoom] = pixels
    framed = torch.nn.functional.pad(rearrange(framed, "b k c h w -> b c h (k w)"), (0, 3 * gap), value=255)
    cols = min(columns, len(framed))
    sheet = rearrange(framed, "(r g) c h w -> (r h) (g w) c", g=cols)
    Image.fromarray(np.ascontiguousarray(sheet.numpy())).save(path)


def _images(method: MAE, source: Any, count: int) -> Tensor:
    """The first `count` readable images that a fixed shuffle of the source gives, as evaluations see them."""
    view, images = eval_view(method.config), []
    for index in np.random.default_rng(0).permutation(len(source)):
        try:
            images.append(view(source.load(int(index)))["views"][0])
        except BadSample:
            continue
        if len(images) == count:
            break
    if not images:
        raise DataError("there is no readable image to show")
    return torch.stack(images)
