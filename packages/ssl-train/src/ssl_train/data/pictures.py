"""What the figures of every image package are made of: pictures of a source, and a grid of them in
a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ssl_train.data.readable import readable
from ssl_train.data.views import eval_view


def sample_images(source: Any, config: Any, count: int) -> Tensor:
    """uint8 (b, c, h, w): the first `count` readable images of a fixed shuffle, as evaluations of
    `config` see them.

    Raises DataError when none is readable.
    """
    view = eval_view(config)
    return torch.stack([view(sample)["views"][0] for _, sample in readable(source, count)])


def rgb(pictures: Tensor) -> Tensor:
    """Pictures (…, c, h, w) of any channels as (…, 3, h, w): one or two are shown as the first in
    grey, more than three as the first three."""
    c = pictures.shape[-3]
    return pictures[..., :3, :, :] if c >= 3 else pictures[..., :1, :, :].expand(*pictures.shape[:-3], 3, -1, -1)


def save_grid(pictures: Tensor, path: Path, *, columns: int = 2, scale_to: int = 96, gap: int = 6) -> None:
    """Write (b, k, c, h, w) pictures in [0, 1] as a white-framed grid, k beside each other,
    `columns` groups a row.

    Small pictures are enlarged by a whole factor to about `scale_to` pixels. Other channels than
    RGB are shown as `rgb` says.
    """
    from PIL import Image

    b, _, _, h, w = pictures.shape
    zoom = max(1, round(scale_to / h))
    pictures = pictures[: b - b % columns] if b >= columns else pictures
    pixels = rgb((pictures.cpu() * 255).round().to(torch.uint8))
    pixels = pixels.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    framed = torch.full((*pixels.shape[:3], h * zoom + gap, w * zoom + gap), 255, dtype=torch.uint8)
    framed[..., : h * zoom, : w * zoom] = pixels
    framed = torch.nn.functional.pad(rearrange(framed, "b k c h w -> b c h (k w)"), (0, 3 * gap), value=255)
    sheet = rearrange(framed, "(r g) c h w -> (r h) (g w) c", g=min(columns, len(framed)))
    Image.fromarray(np.ascontiguousarray(sheet.numpy())).save(path)
