"""A masked autoencoder from lightly's parts, put together as in lightly 1.6's examples/mae."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_mae.config import MAEConfig
from ssl_mae.mae import MAE


class LightlyMAE(nn.Module):
    """Loss of normalised images (b, c, h, w) under the mask that `noise` (b, n) sorts."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        shared = {"mlp_ratio": config.mlp_ratio, "norm_layer": partial(nn.LayerNorm, eps=config.layer_norm_eps)}
        vit = VisionTransformer(
            img_size=config.size,
            patch_size=config.patch_size,
            in_chans=config.in_channels,
            num_classes=0,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.heads,
            **shared,
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder_embed = nn.Linear(config.dim, config.decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=config.patches,
            embed_dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            **shared,
        )
        self.prediction_head = nn.Linear(config.decoder_dim, config.patch_size**2 * config.in_channels)

    def load(self, method: MAE) -> None:
        """Copy our weights into lightly's parts."""
        decoder = method.decoder.state_dict()
        for name, module in (("embed", self.decoder_embed), ("pred", self.prediction_head)):
            module.load_state_dict({key: decoder.pop(f"{name}.{key}") for key in ("weight", "bias")})
        self.decoder.load_state_dict(decoder)
        self.backbone.vit.load_state_dict(method.encoder.state_dict())

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        order = F.pad(noise.argsort(1) + 1, (1, 0))  # token 0, CLS, is always kept
        keep, removed = order[:, : self.config.kept + 1], order[:, self.config.kept + 1 :]
        seen = self.decoder_embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = seen.new_zeros(len(seen), self.backbone.sequence_length, seen.shape[-1])
        tokens = utils.set_at_index(tokens, keep, seen)
        decoded = self.decoder(tokens, idx_mask=removed)
        pred = self.prediction_head(utils.get_at_index(decoded, removed))
        target = utils.get_at_index(utils.patchify(images, self.config.patch_size), removed - 1)
        if self.config.norm_pix_loss:
            target = utils.normalize_mean_var(target)
        return F.mse_loss(pred, target)
