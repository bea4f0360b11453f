"""Which stage of a ResNet gives the features."""

from __future__ import annotations

from torch import Tensor

from ssl_core.encoder import PooledViT
from ssl_core.resnet import ResNet


def stage_features(encoder: PooledViT | ResNet, images: Tensor, stage: int) -> Tensor:
    """Mean of a stage's map, (b, d), of images (b, c, h, w) that are normalised; a ViT has its own pooling.

    The last stage serves the task itself; Goyal et al. 2019 (arXiv 1905.01235) probe every one.
    """
    return encoder(images, stage) if isinstance(encoder, ResNet) else encoder(images)
