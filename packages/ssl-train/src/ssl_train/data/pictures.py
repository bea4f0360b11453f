"""What the figures of every image package are made of: pictures of a source, and a grid of them in
a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ssl_train.data.readable import readable
from ssl_train.data.views import eval_view

LINE = 15
"""Pixels of a line of text."""


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


def save_grid(
    pictures: Tensor,
    path: Path,
    *,
    columns: int = 2,
    scale_to: int = 96,
    gap: int = 6,
    titles: Sequence[str] = (),
    labels: Sequence[str] = (),
    right: Sequence[bool] = (),
) -> None:
    """Write (b, k, c, h, w) pictures in [0, 1] as a white-framed grid, k beside each other,
    `columns` groups a row.

    `titles` are k words above the first row's pictures, `labels` b texts above the groups. A group
    gets a green frame where `right` (b) is true and a red one where it is not. Small pictures are
    enlarged by a whole factor to about `scale_to` pixels. Other channels than RGB are shown as
    `rgb` says.
    """
    from PIL import Image, ImageDraw

    b, k, _, h, w = pictures.shape
    zoom, columns = max(1, round(scale_to / h)), min(columns, b)
    pixels = rgb((pictures.cpu() * 255).round().to(torch.uint8))
    pixels = rearrange(pixels.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2), "b k c h w -> b k h w c")

    # Texts are wrapped to the width that they stand over, and make room for their lines.
    step, height = w * zoom + gap, h * zoom + gap
    width = k * step + 3 * gap
    above = [wrapped(title, step - gap) for title in titles]
    over = [wrapped(label, k * step - gap) for label in labels]
    top, head = (LINE * max((text.count("\n") + 1 for text in texts), default=0) for texts in (above, over))
    sheet = Image.new("RGB", (columns * width, top + -(-b // columns) * (head + height)), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(b):
        x, y = i % columns * width, top + i // columns * (head + height)
        if i < columns:
            for j, title in enumerate(above):
                pen.multiline_text((x + j * step, 0), title, fill="black", font=font(), spacing=0)
        colour = "black"
        if len(right):
            colour = "#1a7f37" if right[i] else "#cf222e"
        if labels:
            pen.multiline_text((x, y), over[i], fill=colour, font=font(), spacing=0)
        for j, picture in enumerate(pixels[i]):
            sheet.paste(Image.fromarray(np.ascontiguousarray(picture.numpy())), (x + j * step, y + head))
        if len(right):
            pen.rectangle([x, y + head, x + k * step - gap - 1, y + head + h * zoom - 1], outline=colour, width=2)
    sheet.save(path)


def font(size: int = 12) -> Any:
    """Pillow's own font, which every machine has."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width` pixels; words are broken only if they are longer."""
    fits, lines = (lambda line: font().getlength(line) <= width), [""]
    for word in text.split():
        if not fits(f"{lines[-1]} {word}".lstrip()):
            lines.append("")
        for letter in f" {word}" if lines[-1] else word:
            if lines[-1] and not fits(lines[-1] + letter):
                lines.append("")
            lines[-1] += letter
    return "\n".join(filter(None, lines))


def apart(places: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """Places (n, 2) as cells (column, row) of a grid, (n, 2) int, no two in the same cell.

    The grid spans all places. Each takes the nearest cell that is free, in their order. Raises
    ValueError if there are fewer cells than places.
    """
    if len(places) > columns * rows:
        raise ValueError(f"{len(places)} places do not fit into {columns} x {rows} cells")
    low, high = places.min(0), places.max(0)
    wanted = (places - low) / np.maximum(high - low, 1e-12) * (columns - 1, rows - 1)
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), -1).reshape(-1, 2)
    free, taken = np.ones(len(cells), bool), []
    for place in wanted:
        distance = np.where(free, ((cells - place) ** 2).sum(1), np.inf)
        taken.append(int(distance.argmin()))
        free[taken[-1]] = False
    return cells[taken]
