"""A picture of what is asked: images in four rotations, and what the network says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image

from ssl_core.data.views import eval_view
from ssl_clip.rotation import RotNet, four_rotations

ROWS = 8


def show(method: RotNet, source: Any, folder: Path) -> dict[str, str]:
    """Write rotations.png and return {file name: caption}."""
    view = eval_view(method.config)
    images = torch.stack([view(source.load(i))["views"][0] for i in range(min(ROWS, len(source)))])
    turned = four_rotations(images.to(method.head.weight.device))
    guesses = method.head(method.encode(turned)).argmax(1)
    turns = torch.arange(4, device=guesses.device).repeat_interleave(len(images))
    right = (guesses == turns).float().mean()
    sheet = rearrange(turned[:, :3].cpu(), "(k b) c h w -> (b h) (k w) c", k=4)
    # one channel is shown as grey, two as their first
    sheet = sheet if sheet.shape[2] == 3 else sheet[..., :1].expand(-1, -1, 3)
    Image.fromarray(sheet.numpy()).save(folder / "rotations.png")
    return {"rotations.png": f"0 | 90 | 180 | 270 degrees; {right:.0%} recognised"}
