"""Masked Autoencoders Are Scalable Vision Learners (He et al. 2021, arXiv 2111.06377).

An encoder sees a random quarter of an image's patches; a small decoder predicts the pixels of the
rest.

    L = 1/Σm · Σ_{i: m_i = 1} 1/P · ‖ŷ_i − y_i‖²,   P = p²·c, m_i = 1 for removed patches   (section
    3) y = pixels of the patch, or (y − mean)/√(var + 1e-6) with the unbiased variance
    (`norm_pix_loss`)

Both position embeddings are fixed 2-D sin-cos. Every Linear and the patch projection (as a matrix)
start Xavier-uniform, CLS and mask token from N(0, 0.02²), LayerNorm at 1 and 0 (appendix A.1).

Deviations from the authors' code: none in the result. Patches that the encoder does not see are
dropped before the patch projection instead of after it.

Expected (the authors' README): ViT-B/L/H fine-tuned 83.66/85.95/86.93 % on ImageNet, linear probe
67.8/76.0/77.2 %.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_core.device import wide
from ssl_core.encoder import ImageEncoder
from ssl_core.hub.pretrained import Pretrained
from ssl_core.patches import (
    PosInterp,
    grid_of,
    interpolate_positions,
    patchify,
    sincos_positions,
    take_tokens,
    unpatchify,
)
from ssl_core.vit import Block, ViT, pooled
from ssl_mae.config import MAEConfig


def mae_loss(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of removed patches.

    pred and target (b, n, p·p·c), mask (b, n) with 1 for removed. One sum over the batch, one
    division. Computed in float32, in float64 for float64.
    """
    error = (wide(pred) - wide(target)).square().mean(-1)  # b n
    return (error * mask).sum() / mask.sum()


def random_masking(noise: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches stay: those of the `keep` smallest `noise` values (b, n), drawn per sample.

    Returns (kept ids (b, keep), ids that restore the order (b, n), mask (b, n) float, 1 = removed).
    Section 3, "Simple implementation".
    """
    shuffle = noise.argsort(1)  # b n: a random order of the patches
    restore = shuffle.argsort(1)  # b n: the place of each patch in that order
    return shuffle[:, :keep], restore, (restore >= keep).float()


def standardize(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(standardised patches, mean, std) of (b, n, p·p·c) over the pixels of each patch.

    The variance is unbiased, with 1e-6 added inside the root, as in the authors' code.
    """
    var, mean = torch.var_mean(patches, -1, keepdim=True)  # b n 1
    std = (var + 1e-6).sqrt()
    return (patches - mean) / std, mean, std


class Decoder(nn.Module):
    """Kept tokens and mask tokens in the image's order, through a few blocks, to pixels."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        dim, heads = config.decoder_dim, config.decoder_heads
        options: dict[str, Any] = {"mlp_ratio": config.mlp_ratio, "layer_norm_eps": config.layer_norm_eps}
        self.grid = config.grid
        self.pos_interp: PosInterp = config.pos_interp
        self.embed = nn.Linear(config.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim=dim, heads=heads, **options) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.pred = nn.Linear(dim, config.patch_size**2 * config.in_channels)

    def forward(self, tokens: Tensor, restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens (b, 1 + k, d) with CLS, restore (b, n) -> (b, n, p·p·c)."""
        x = self.embed(tokens)  # b 1+k d
        n, hidden = restore.shape[1], restore.shape[1] + 1 - x.shape[1]

        # Mask tokens fill the holes behind the kept tokens; `restore` puts all in the image's
        # order.
        holes = self.mask_token.to(x.dtype).expand(x.shape[0], hidden, -1)  # b n-k d
        patches = take_tokens(torch.cat([x[:, 1:], holes], 1), restore)  # b n d

        # Every token gets its position now: a mask token is nothing else.
        x = torch.cat([x[:, :1], patches], 1)  # b 1+n d
        x = x + interpolate_positions(self.pos_embed, self.grid, grid, self.pos_interp)
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x[:, -n:]))  # b n p·p·c, without CLS


class Reconstruction(NamedTuple):
    """What `MAE.reconstruct` returns."""

    image: Tensor
    """(b, c, h, w) in [0, 1]: the input where it was seen, the prediction elsewhere"""
    pred: Tensor
    """(b, n, p·p·c) as the decoder says it, standardised per patch with `norm_pix_loss`"""
    mask: Tensor
    """(b, n), 1 = removed"""
    loss: Tensor
    """scalar"""


class MAE(nn.Module, ImageEncoder, Pretrained):
    """Encoder and decoder of a masked autoencoder, built from a `MAEConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std; height and width may be any multiples of the patch size.
    """

    config_class = MAEConfig
    layout = "ssl_mae.convert:LAYOUTS[mae]"
    accumulates = True  # the loss is a mean over patches, of which every image removes as many

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViT.of(config, positions="sincos")
        self.decoder = Decoder(config)
        self.apply(init_linear)
        nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of `batch["views"][0]`; `batch["noise"]` (b, n), where the loader drew one, decides
        the mask."""
        images = self.normalized(batch["views"][0])  # b c h w
        keep, restore, mask = self.mask(images, batch.get("noise"), self.config.mask_ratio)
        tokens = self.encoder(images, keep)  # b 1+k d: the encoder never sees the rest
        pred = self.decoder(tokens, restore, self.encoder.grid_of(images))  # b n p·p·c
        return {"loss": mae_loss(pred, self.target(images), mask)}

    def mask(self, images: Tensor, noise: Tensor | None, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """`random_masking` of images (b, c, h, w): int(n · (1 - ratio)) patches stay; `noise` is
        (b, n) or drawn here.

        Raises ValueError for noise of another shape, and when no patch would be seen or none
        removed.
        """
        h, w = self.encoder.grid_of(images)
        b, n = images.shape[0], h * w
        if noise is None:
            noise = torch.rand(b, n, device=images.device)
        elif noise.shape != (b, n):
            raise ValueError(f"noise must be ({b}, {n}), one value per patch, got {tuple(noise.shape)}")
        kept = int(n * (1 - ratio))
        if not 0 < kept < n:
            raise ValueError(f"mask_ratio {ratio} keeps {kept} of {n} patches: at least one must be seen, one removed")
        return random_masking(noise, kept)

    def target(self, images: Tensor) -> Tensor:
        """What the decoder is to predict, (b, n, p·p·c): pixels, standardised per patch with
        `norm_pix_loss`."""
        patches = patchify(images, self.config.patch_size)
        return standardize(patches)[0] if self.config.norm_pix_loss else patches

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d) of whole images: the CLS token or the mean of the patches, as
        `config.pool` says."""
        return pooled(self.encoder(self.normalized(images)), self.config.pool)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None
    ) -> Reconstruction:
        """Remove patches and predict them. `noise` (b, n) fixes which; the ratio is the config's
        unless given."""
        config = self.config
        images = self.normalized(images)
        keep, restore, mask = self.mask(images, noise, config.mask_ratio if mask_ratio is None else mask_ratio)
        pred = self.decoder(self.encoder(images, keep), restore, self.encoder.grid_of(images))

        # With `norm_pix_loss` a prediction is put back on the scale of its true patch before it is
        # shown.
        patches = patchify(images, config.patch_size)  # b n p·p·c
        shown = pred.float()
        if config.norm_pix_loss:
            _, mean, std = standardize(patches)
            shown = shown * std + mean

        # Seen patches are shown as they are, in pixels of [0, 1].
        shown = torch.where(mask[..., None] > 0, shown, patches)
        pixels = unpatchify(shown, config.patch_size, grid_of(images, config.patch_size))
        mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (config.mean, config.std))
        loss = mae_loss(pred, self.target(images), mask)
        return Reconstruction((pixels * std + mean).clamp(0, 1), pred, mask, loss)


def init_linear(module: nn.Module) -> None:
    """MAE's rule for every Linear: Xavier-uniform weight, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
