"""A picture of what is asked: images in four rotations, and what the network says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from ssl_template.rotation import RotNet, four_rotations
from ssl_train.data.pictures import sample_images, save_grid

ROWS = 8


def show(method: RotNet, source: Any, folder: Path) -> dict[str, str]:
    """Write rotations.png and return {file name: caption}."""
    images = sample_images(source, method.config, ROWS)
    turned = four_rotations(images.to(method.head.weight.device))
    guesses = method.head(method.encode(turned)).argmax(1)
    turns = torch.arange(4, device=guesses.device).repeat_interleave(len(images))
    right = (guesses == turns).float().mean()
    save_grid(rearrange(turned / 255, "(k b) c h w -> b k c h w", k=4), folder / "rotations.png", columns=1)
    return {"rotations.png": f"0 | 90 | 180 | 270 degrees; {right:.0%} recognised"}
