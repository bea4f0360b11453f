"""The encoder that a `BackboneConfig` asks for, behind one interface: images to pooled features, and to a map of them."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_core.config import BackboneConfig
from ssl_core.resnet import ResNet
from ssl_core.vit import ViT


class PooledViT(ViT):
    """A ViT whose output is one vector per image: the CLS token or the mean of the patches, after the last norm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(
            image_size=config.size, patch_size=config.patch_size, in_channels=config.in_channels, dim=config.dim,
            depth=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio, layer_norm_eps=config.layer_norm_eps,
            pos_interp=config.pos_interp, drop_path=config.drop_path,
        )  # fmt: skip
        self.features, self.pool = config.dim, config.pool
        self.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(b, c, h, w) -> (b, d)."""
        tokens = self.norm(self.tokens(images))
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1)

    def feature_map(self, images: Tensor) -> Tensor:
        """Normalised patch tokens on their grid, (b, h, w, d)."""
        return self.patch_features(images)


def build_backbone(config: BackboneConfig, *, zero_init_residual: bool = False) -> PooledViT | ResNet:
    """`config.backbone`, with `.features` (d), `forward` (b, d) and `feature_map` (b, h, w, d) of normalised images.

    A ResNet starts as torchvision's, its residual branches at zero where asked; a ViT as DINO's and timm's.
    """
    if config.is_vit:
        return PooledViT(config)
    return ResNet(
        config.backbone, in_channels=config.in_channels, width=config.width, small_stem=config.small_stem,
        zero_init_residual=zero_init_residual,
    )  # fmt: skip


def init_linear(module: nn.Module) -> None:
    """DINO's and timm's rule for every Linear: truncated normal of std 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
