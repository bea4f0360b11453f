"""Extracting and Composing Robust Features with Denoising Autoencoders (Vincent et al. 2008).

The network sees an image with Gaussian noise and predicts the image without it:

    L = mean over pixels of (x - decoder(encoder(x + noise)))²
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoising.config import DenoisingConfig
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import normalize


class Denoising(nn.Module, Pretrained):
    """Two strided convolutions and their mirror image."""

    config_class = DenoisingConfig
    layout = "denoising.convert:LAYOUTS[denoising]"
    accumulates = True  # the loss is a mean over samples

    def __init__(self, config: DenoisingConfig) -> None:
        super().__init__()
        self.config = config
        c, d = config.in_channels, config.width
        self.encoder = nn.Sequential(nn.Conv2d(c, d, 4, 2, 1), nn.GELU(), nn.Conv2d(d, d, 4, 2, 1))
        self.decoder = nn.Sequential(nn.GELU(), nn.ConvTranspose2d(d, d, 4, 2, 1))
        self.head = nn.Sequential(nn.GELU(), nn.ConvTranspose2d(d, c, 4, 2, 1))

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """The loss of `batch["views"][0]`; `progress` is not used."""
        images = normalize(batch["views"][0], self.config.mean, self.config.std)  # b c h w
        noisy = images + self.config.noise * torch.randn_like(images)
        return {"loss": F.mse_loss(self.denoise(noisy).float(), images.float())}

    def denoise(self, images: Tensor) -> Tensor:
        """Normalised noisy images (b, c, h, w) -> the predicted images without noise."""
        return self.head(self.decoder(self.encoder(images)))

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d): the mean of the encoder's map."""
        return self.encoder(normalize(images, self.config.mean, self.config.std)).mean((2, 3))
