"""Features of an earlier stage of a ResNet, for methods whose last stage serves the task more."""

from __future__ import annotations

from torch import Tensor

from ssl_core.encoder import ImageEncoder
from ssl_core.resnet import ResNet


class StageEncoder(ImageEncoder):
    """An `ImageEncoder` whose config names the stage that `encode` reads, in `feature_stage`.

    Goyal et al. 2019 (arXiv 1905.01235) probe every stage.
    """

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d) of images of any size: the stage's mean map, or what a ViT pools."""
        images = self.normalized(images)  # b c h w
        if isinstance(self.encoder, ResNet):
            return self.encoder(images, self.config.feature_stage)
        return self.encoder(images)
