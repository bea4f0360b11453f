"""Colorful Image Colorization (Zhang, Isola and Efros 2016, arXiv 1603.08511).

The encoder sees how light an image is. What is predicted is its colour, as a class at every fourth
pixel.

    L_cl = -Σ w(Z) · Σ_q Z_q · log Ẑ_q, mean over pixels                      (equation 2)

Z divides a true colour among the nearest of Q cells of the ab plane (`ab_bins`). w is the weight of
the cell nearest to it: rare colours count more, because most of any picture is dull. Colours are
read off as an annealed mean (equation 5). `target="regression"` is what this replaces: a and b
themselves with a smooth L1 loss, which in doubt is best answered by grey.

An image whose colours all lie within 5 of grey has the weight 0, as in the authors' code.

Deviations: any of our encoders and a small decoder in place of their network. The prior of the
colours is a running mean over the batches, uniform at first, and not a table counted on ImageNet. A
colour is that of the pixel in the middle of its square, so that the picture is not shifted. Q is
261 (`ab_bins`), not 313.

Expected (VISSL): ResNet-50 on ImageNet 40.1 % in the linear probe.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.device import wide
from ssl_core.encoder import build_encoder
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import as_float, check_images
from ssl_pretext.ab_bins import ab_bins, annealed_mean, rebalancing, smoothing, soft_encode
from ssl_pretext.config import ColorizationConfig
from ssl_pretext.lab import lab_to_rgb, rgb_to_lab
from ssl_pretext.stage import StageEncoder

AB_SCALE = 110.0
"""What a and b are divided by in a regression."""
DULL = 5.0
"""Images all of whose |a|, |b| are at most this have no colour to learn from."""


def colorization_loss(logits: Tensor, ids: Tensor, soft: Tensor, weight: Tensor) -> Tensor:
    """Equation 2, mean over pixels: weighted cross-entropy with soft classes; at least fp32.

    logits (n, Q), bins `ids` (n, k) with shares `soft` (n, k), weight of each pixel (n,). The other
    bins of a pixel have the share 0.
    """
    log_p = wide(logits).log_softmax(1).gather(1, ids)  # n k
    return -(weight * (soft * log_p).sum(1)).mean()


class Decoder(nn.Module):
    """The encoder's map to a finer one of `outputs` channels.

    Each place becomes `ratio` x `ratio` places, then follows a convolution of 3 x 3.
    """

    def __init__(self, features: int, hidden: int, outputs: int, ratio: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(features, hidden * ratio**2, 1, bias=False)
        self.shuffle = nn.PixelShuffle(ratio)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.predict = nn.Conv2d(hidden, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(b, h, w, d) -> (b, h·ratio, w·ratio, outputs)."""
        x = self.expand(rearrange(features, "b h w d -> b d h w"))  # b hidden·ratio² h w
        x = F.relu(self.norm1(self.shuffle(x)), inplace=True)  # b hidden h·ratio w·ratio
        x = F.relu(self.norm2(self.conv(x)), inplace=True)
        return rearrange(self.predict(x), "b q h w -> b h w q")


class Colorization(nn.Module, StageEncoder, Pretrained):
    """An encoder of lightness and a decoder of colours, built from a `ColorizationConfig`.

    Images are uint8 (b, 3, h, w) or (b, 1, h, w) grey as decoded, float (b, 3, h, w) normalised
    with the config's mean and std, or float (b, 1, h, w) L of Lab in 0 … 100.
    """

    config_class = ColorizationConfig
    layout = "ssl_pretext.convert:LAYOUTS[colorization]"
    bins: Tensor
    prior: Tensor

    def __init__(self, config: ColorizationConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        bins = ab_bins(config.bin_size)  # Q 2
        outputs = len(bins) if config.target == "bins" else 2
        self.decoder = Decoder(self.encoder.features, config.hidden, outputs, config.cell // config.color_stride)
        if config.target == "bins":
            self.register_buffer("bins", bins)
            self.register_buffer("prior", torch.full((len(bins),), 1 / len(bins)))
        self.seen: Tensor | None = None  # how often each bin was seen since the last step
        sync_batch_norm(self)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of RGB images `batch["views"][0]`. With bins, also the share of pixels whose nearest
        bin is the likeliest."""
        lab = rgb_to_lab(self._rgb(batch["views"][0]))  # b 3 h w
        predicted = self.logits(lab[:, :1]).flatten(0, 2)  # n Q, from the lightness alone

        # The true colour is that of the pixel in the middle of each square.
        stride = self.config.color_stride
        ab = lab[:, 1:, stride // 2 :: stride, stride // 2 :: stride]  # b 2 h w
        true = rearrange(ab, "b k h w -> (b h w) k")  # n 2
        if self.config.target == "regression":
            return {"loss": F.smooth_l1_loss(wide(predicted), true / AB_SCALE)}

        # Z and w(Z), which is 0 for the pixels of a dull image
        ids, soft = soft_encode(true, self.bins, self.config.neighbours)  # n k
        colourful = (ab.abs().amax((1, 2, 3)) > DULL).float()  # b
        counts = colourful.repeat_interleave(ab[0, 0].numel())  # n
        weight = counts * self.weights()[ids[:, 0]]
        if self.training:
            counted = torch.zeros_like(self.prior).index_add(0, ids[:, 0], counts.to(self.prior.dtype))  # Q
            self.seen = counted if self.seen is None else self.seen + counted
        right = predicted.argmax(1) == ids[:, 0]
        return {"loss": colorization_loss(predicted, ids, soft, weight), "accuracy": right.float().mean()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the prior towards the colours of this step, over all processes."""
        if self.seen is not None:
            seen = distributed.all_reduce_sum(self.seen)  # Q
            share = torch.where(seen.sum() > 0, seen / seen.sum().clamp(min=1), self.prior)
            self.prior.lerp_(share, 1 - self.config.prior_momentum)
            self.seen = None

    def weights(self) -> Tensor:
        """How much each bin counts by the present prior, (Q,)."""
        # This is `prior @ smoothing` as a sum, because autocast would take a product to bf16.
        smoothed = (self.prior[:, None] * smoothing(self.bins)).sum(0)  # Q
        return rebalancing(smoothed, self.config.uniform)

    def logits(self, images: Tensor) -> Tensor:
        """Scores of the bins (b, h, w, Q), one place for `config.color_stride` pixels. In a
        regression a / 110 and b / 110 instead."""
        return self.decoder(self.patch_features(images))

    @torch.no_grad()
    def colorize(self, grey: Tensor, temperature: float | None = None) -> Tensor:
        """RGB (b, 3, h, w) in [0, 1] with the lightness of `grey` and the predicted colours.

        `temperature` of the annealed mean is the config's unless given. Raises ValueError for
        images of another shape.
        """
        lightness = self.lightness(grey)  # b 1 h w
        raw = self.logits(lightness).float()  # b h w Q, coarser than the image
        if self.config.target == "regression":
            ab = AB_SCALE * raw
        else:
            ab = annealed_mean(raw, self.bins, self.config.temperature if temperature is None else temperature)
        ab = F.interpolate(rearrange(ab, "b h w k -> b k h w"), lightness.shape[-2:], mode="bilinear")
        return lab_to_rgb(torch.cat([lightness, ab.to(lightness.dtype)], 1))

    def normalized(self, images: Tensor) -> Tensor:
        """What the encoder sees: the lightness (b, 1, h, w) in −1 … 1."""
        return self.lightness(images) / 50 - 1

    def lightness(self, images: Tensor) -> Tensor:
        """L of Lab, (b, 1, h, w) in 0 … 100. Raises ValueError for images of another shape."""
        single = isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 1
        if not single:
            check_images(images, self.config.mean, self.config.std)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be (b, 1, h, w) or (b, 3, h, w), got {tuple(images.shape)}")
        if single and images.is_floating_point():
            return images
        return rgb_to_lab(self._rgb(images.expand(-1, 3, -1, -1)))[:, :1]

    def _rgb(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] of uint8 images, or of float ones that were normalised."""
        if not images.is_floating_point():
            return as_float(images)
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.config.mean, self.config.std))
        return images * std + mean

    def preprocessor(self) -> dict[str, Any]:
        """preprocessor_config.json of what the published encoder sees: L / 100 as a grey image."""
        mean, std = self.config.encoder.mean, self.config.encoder.std
        grey = {"image_mean": list(mean), "image_std": list(std), "do_convert_rgb": False}
        return {**super().preprocessor(), **grey}
