"""A picture of images with noise, and of what the network makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from denoising.denoising import Denoising
from ssl_core.pixels import normalize
from ssl_train.data.pictures import sample_images, save_grid


@torch.inference_mode()
def show(method: Denoising, source: Any, folder: Path) -> dict[str, str]:
    """Write denoised.png and return {file name: caption}."""
    config = method.config
    images = normalize(sample_images(source, config, 8), config.mean, config.std)
    noisy = images + config.noise * torch.randn_like(images)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    columns = torch.stack([images, noisy, method.denoise(noisy)], 1) * std + mean  # b 3 c h w
    save_grid(columns.clamp(0, 1), folder / "denoised.png")
    return {"denoised.png": "image | with noise | denoised"}
