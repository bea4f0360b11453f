"""The encoder that a `BackboneConfig` asks for, and the mixin of every method that has one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ssl_core.config import BackboneConfig
from ssl_core.pixels import check_images, normalize
from ssl_core.resnet import ResNet
from ssl_core.vit import ViT, pooled


class ImageEncoder:
    """Mixin of an `nn.Module` that has `self.config` (mean, std) and `self.encoder`.

    It adds the functions that users call. Images are uint8 or uint16 (b, c, h, w) as decoded, or
    floats that are normalised already.
    """

    config: Any
    encoder: Any

    def normalized(self, images: Tensor) -> Tensor:
        """(b, c, h, w) as floats, minus the config's mean, over its standard deviation.

        Raises TypeError for anything but a tensor, and warns of floats that are not normalised.
        """
        check_images(images, self.config.mean, self.config.std)
        return normalize(images, self.config.mean, self.config.std)

    def encode(self, images: Tensor) -> Tensor:
        """Features of whole images, (b, d)."""
        return self.encoder(self.normalized(images))

    def patch_features(self, images: Tensor) -> Tensor:
        """Features of the patches, or of a ResNet's last map, (b, h, w, d)."""
        return self.encoder.patch_features(self.normalized(images))


class PooledViT(ViT):
    """A ViT whose output is one vector per image: the CLS token or the mean of the patches, after
    the last norm."""

    def __init__(self, *, pool: str = "cls", **options: Any) -> None:
        super().__init__(**options)
        self.features, self.pool = self.dim, pool
        self.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(b, c, h, w) -> (b, d)."""
        return pooled(super().forward(images), self.pool)


def build_encoder(config: BackboneConfig, *, zero_init_residual: bool = False) -> PooledViT | ResNet:
    """`config.backbone`: `.features` (d), `forward` (b, d) and `patch_features` (b, h, w, d) of
    normalised images.

    A ResNet starts as torchvision's, its residual branches at zero where asked. A ViT starts as
    DINO's and timm's.
    """
    if config.is_vit:
        return PooledViT.of(config, pool=config.pool, drop_path=config.drop_path)
    resnet = ResNet(config.backbone, in_channels=config.in_channels, width=config.width, small_stem=config.small_stem)
    return resnet.zero_residuals() if zero_init_residual else resnet


def init_linear(module: nn.Module) -> None:
    """DINO's and timm's rule for every Linear: truncated normal of std 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
