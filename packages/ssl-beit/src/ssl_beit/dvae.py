"""The discrete VAE that turns pictures into visual tokens: stage 1 of DALL-E.

Zero-Shot Text-to-Image Generation (Ramesh et al. 2021, arXiv 2102.12092).

A convolutional encoder gives K logits for each 8 x 8 pixels. A decoder gives the picture back from
one-hot codes. In training the codes are relaxed: a Gumbel-softmax whose temperature τ falls.

    x = 0.8 · pixel + 0.1,  logits = encoder(x)                                     (appendix A.3)
    q = softmax(logits),  z = softmax((logits + g) / τ),  g_k ~ Gumbel(0, 1)
    (μ, ln b) = decoder(z)
    f(x | μ, b) = exp(−|logit x − μ| / b) / (2 b x (1 − x))          the logit-Laplace density (A.3)
    L = 1/(h · w · c) · [ Σ_{pixels, channels} −ln f + β · Σ_{positions} KL(q ‖ uniform) ]
    τ: 1 → 1/16 and β: 0 → 6.6 by half a cosine each; weights averaged with momentum 0.999    (A.2)

Tokens are the argmax of the logits, without noise. A picture is (σ(μ) − 0.1) / 0.8.

Deviations: The learning rate's cosine spans the run (the paper: the first 1.2 M of 3 M updates).
Other schedules are shares of a run, where the paper counts updates. Crops are BEiT's. The Gumbel
noise is a hash of the sample's own seed, so it depends neither on the batch nor on the device.

Expected: no figure is published for the tokenizer alone. BEiT was trained on its tokens
(`ssl_beit.beit`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_beit.config import STRIDE, DVAEConfig
from ssl_core.device import wide
from ssl_core.ema import ema_update, frozen_copy
from ssl_core.hub.pretrained import Pretrained
from ssl_core.patches import grid_of
from ssl_core.pixels import as_float, check_images
from ssl_core.schedule import cosine

SHRINK, SHIFT = 0.8, 0.1
WIDTHS = (1, 2, 4, 8)
"""Channels of the encoder's groups over `hidden`; the decoder has them the other way round."""


def map_pixels(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] to [0.1, 0.9], away from where the logit is infinite."""
    return SHRINK * pixels + SHIFT


def unmap_pixels(x: Tensor) -> Tensor:
    """Inverse of `map_pixels`, clamped to [0, 1]."""
    return ((x - SHIFT) / SHRINK).clamp(0, 1)


def logit_laplace_log_density(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """ln f(x | μ, b) for mapped pixels x in (0, 1), location μ and log scale ln b of one shape."""
    distance = (x.logit() - mu).abs() * (-log_b).exp()
    return -(distance + math.log(2) + log_b + x.log() + (1 - x).log())


def logit_laplace_loss(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """−ln f, the mean over pixels, channels and samples, in fp32; x, mu and log_b (b, c, h, w)."""
    return -logit_laplace_log_density(wide(x), wide(mu), wide(log_b)).mean()


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(q ‖ uniform) in nats of logits (b, k, h, w), the mean over positions and samples; fp32."""
    log_q = wide(logits).log_softmax(1)  # b k h w
    return (log_q.exp() * log_q).sum(1).mean() + math.log(logits.shape[1])


def anneal(progress: float, start: float, end: float, share: float) -> float:
    """From `start` to `end` by half a cosine in the first `share` of the run, then `end` (A.2)."""
    return cosine(1.0 if progress >= share else progress / share, start, end)


def gumbel_noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard Gumbel noise (b, *shape) for int64 `seeds` (b,).

    Each sample's noise depends on its seed alone, so no batch, device or generator changes it:
    SplitMix64 hashes the seed and the element's number to a uniform number.
    """
    index = torch.arange(math.prod(shape), device=seeds.device)  # n, int64
    # The constant is 2^64 over the golden ratio, made odd: it spreads neighbouring numbers.
    bits = splitmix(splitmix(seeds)[:, None] + index * -7046029254386353131)  # b n
    # 23 bits and a half are exact in float32, so the number is neither 0 nor 1.
    uniform = ((bits & 0x7FFFFF).to(torch.get_default_dtype()) + 0.5) / 2**23
    return -(-uniform.log()).log().view(len(seeds), *shape)


def splitmix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap. The masks make its shifts logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


class Block(nn.Module):
    """id(x) + 1/n² · res(x), of n blocks in all; `res` is four convolutions, a quarter as wide."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], layers: int) -> None:
        super().__init__()
        self.gain = 1 / layers**2
        self.id_path = nn.Identity() if n_in == n_out else convolution(n_in, n_out, 1)
        widths = (n_in, n_out // 4, n_out // 4, n_out // 4, n_out)
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            path[f"relu_{i + 1}"] = nn.ReLU()
            path[f"conv_{i + 1}"] = convolution(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(path)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.id_path(x), self.res_path(x), alpha=self.gain)


def convolution(n_in: int, n_out: int, kernel: int) -> nn.Conv2d:
    """Keeps the size. Weights start from N(0, 1 / (n_in · kernel²)), the bias at 0."""
    layer = nn.Conv2d(n_in, n_out, kernel, padding=(kernel - 1) // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(n_in * kernel**2))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def stack(
    n_in: int, widths: list[int], n_out: int, *, first: int, kernels: tuple[int, ...], blocks: int, **between: nn.Module
) -> nn.Sequential:
    """What encoder and decoder share: a convolution, four groups of blocks, ReLU and a convolution.

    The groups lead through `widths` (five); `between` changes the size after each but the last.
    `first` is the kernel of the first convolution, `kernels` are those of a block. The names are
    DALL-E's.
    """
    output: OrderedDict[str, nn.Module] = OrderedDict(relu=nn.ReLU(), conv=convolution(widths[-1], n_out, 1))
    parts: OrderedDict[str, nn.Module] = OrderedDict(input=convolution(n_in, widths[0], first))
    for g, (before, after) in enumerate(pairwise(widths), start=1):
        inputs = [before, *[after] * (blocks - 1)]
        group = {f"block_{k}": Block(n, after, kernels, 4 * blocks) for k, n in enumerate(inputs, start=1)}
        parts[f"group_{g}"] = nn.Sequential(OrderedDict(**group, **(between if g < 4 else {})))
    return nn.Sequential(OrderedDict(**parts, output=nn.Sequential(output)))


class Encoder(nn.Module):
    """Mapped pixels (b, c, h, w) to logits (b, k, h/8, w/8)."""

    def __init__(self, *, channels: int, hidden: int, blocks: int, vocab: int) -> None:
        super().__init__()
        widths = [hidden, *(hidden * w for w in WIDTHS)]
        options = {"first": 7, "kernels": (3, 3, 3, 1), "pool": nn.MaxPool2d(2)}
        self.blocks = stack(channels, widths, vocab, blocks=blocks, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)

    def features(self, x: Tensor) -> Tensor:
        """What the logits are computed from, (b, 8 · hidden, h/8, w/8)."""
        return F.relu(self.blocks[:-1](x))


class Decoder(nn.Module):
    """Codes (b, k, h, w), each a distribution over tokens, to μ and ln b (b, 2c, 8h, 8w)."""

    def __init__(self, *, channels: int, hidden: int, blocks: int, vocab: int, init: int) -> None:
        super().__init__()
        widths = [init, *(hidden * w for w in reversed(WIDTHS))]
        options = {"first": 1, "kernels": (1, 3, 3, 3), "upsample": nn.Upsample(scale_factor=2, mode="nearest")}
        self.blocks = stack(vocab, widths, 2 * channels, blocks=blocks, **options)

    def forward(self, codes: Tensor) -> Tensor:
        return self.blocks(codes)

    def from_ids(self, ids: Tensor) -> Tensor:
        """The same for token ids (b, h, w): each is a row of the first convolution."""
        weight, bias = (self.blocks.get_parameter(f"input.{name}") for name in ("weight", "bias"))
        table = rearrange(weight, "d k 1 1 -> k d")
        first = F.embedding(ids, table) + bias  # b h w d
        return self.blocks[1:](rearrange(first, "b h w d -> b d h w").contiguous())


class Tokenizer(nn.Module):
    """Encoder and decoder: what is trained, averaged, published, and read by BEiT."""

    def __init__(self, *, channels: int, hidden: int, blocks: int, vocab: int, init: int) -> None:
        super().__init__()
        self.channels, self.vocab = channels, vocab
        self.encoder = Encoder(channels=channels, hidden=hidden, blocks=blocks, vocab=vocab)
        self.decoder = Decoder(channels=channels, hidden=hidden, blocks=blocks, vocab=vocab, init=init)
        # Convolutions are fastest in this layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def tokenize(self, pixels: Tensor) -> Tensor:
        """Token ids (b, h, w) of pixels (b, c, 8h, 8w), uint8 or in [0, 1]."""
        return self.encoder(self.mapped(pixels)).argmax(1)  # b k h w -> b h w

    def decode(self, ids: Tensor) -> Tensor:
        """Pixels (b, c, 8h, 8w) in [0, 1] of token ids (b, h, w).

        Raises ValueError for another shape or an id that is no token.
        """
        if ids.ndim != 3 or ids.is_floating_point():
            raise ValueError(f"ids must be integers (b, h, w), got {ids.dtype} {tuple(ids.shape)}")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab:
            raise ValueError(f"ids must lie in [0, {self.vocab}), got {int(ids.min())} to {int(ids.max())}")
        mu, _ = self.decoder.from_ids(ids).chunk(2, 1)
        return unmap_pixels(wide(mu).sigmoid())

    def mapped(self, pixels: Tensor) -> Tensor:
        """φ of pixels (b, c, 8h, 8w), uint8 or in [0, 1]. Raises ValueError for another shape."""
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            raise ValueError(f"images must be (b, {self.channels}, h, w), got {tuple(pixels.shape)}")
        grid_of(pixels, STRIDE)
        return map_pixels(as_float(pixels)).contiguous(memory_format=torch.channels_last)


class DVAE(nn.Module, Pretrained):
    """DALL-E's tokenizer, its sizes and recipe from a `DVAEConfig`.

    Images are uint8 (b, c, h, w) or float in [0, 1]. Height and width are any multiples of 8.
    """

    config_class = DVAEConfig
    layout = "ssl_beit.convert:LAYOUTS[dvae]"
    accumulates = True  # the loss is a mean over pixels and positions, of which every image has as many

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        sizes = {"hidden": config.hidden, "blocks": config.blocks, "init": config.decoder_init}
        self.online = Tokenizer(**sizes, channels=config.in_channels, vocab=config.vocab)
        self.average = frozen_copy(self.online)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of `batch["views"][0]`; the noise is that of `batch["seed"]` (b,) int64.

        Logs the two terms, their schedules, the share of the vocabulary that the batch uses and its
        perplexity.
        """
        config = self.config
        x = self.online.mapped(batch["views"][0])  # b c 8h 8w
        logits = self.online.encoder(x)  # b k h w
        temperature = anneal(progress, 1.0, config.temperature, config.temperature_decay)
        weight = anneal(progress, 0.0, config.kl_weight, config.kl_warmup)

        # The argmax has no gradient. The Gumbel-softmax has one, and becomes the argmax as τ falls.
        _, k, h, w = logits.shape
        noise = rearrange(gumbel_noise(batch["seed"], (h, w, k)), "b h w k -> b k h w")
        codes = ((wide(logits) + noise) / temperature).softmax(1)  # b k h w
        mu, log_b = self.online.decoder(codes.to(logits.dtype)).chunk(2, 1)  # b c 8h 8w each

        # Both terms are means. The paper divides both sums by the number of pixel values.
        reconstruction, kl = logit_laplace_loss(x, mu, log_b), kl_to_uniform(logits)
        positions_per_value = logits[:, 0].numel() / x.numel()  # 1 / 192 for three channels
        used, perplexity = usage(logits.detach().argmax(1), config.vocab)
        loss = reconstruction + weight * positions_per_value * kl
        terms = {"loss": loss, "reconstruction": reconstruction, "kl": kl}
        schedules = {"kl_weight": x.new_tensor(weight), "temperature": x.new_tensor(temperature)}
        return {**terms, **schedules, "codes_used": used, "perplexity": perplexity}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the averaged weights follow."""
        ema_update(self.average, self.online, self.config.ema)

    @torch.no_grad()
    def tokenize(self, images: Tensor) -> Tensor:
        """Token ids (b, h/8, w/8) of images (b, c, h, w): the most likely ones."""
        return self.average.tokenize(images)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Images (b, c, 8h, 8w) in [0, 1] of token ids (b, h, w)."""
        return self.average.decode(ids)

    def encode(self, images: Tensor) -> Tensor:
        """The mean over positions of what the logits are computed from, (b, 8 · hidden)."""
        return self._features(images).mean((2, 3))

    def patch_features(self, images: Tensor) -> Tensor:
        """What the logits are computed from, (b, h, w, 8 · hidden)."""
        return rearrange(self._features(images), "b d h w -> b h w d")

    def _features(self, images: Tensor) -> Tensor:
        """What the logits are computed from, (b, 8 · hidden, h/8, w/8)."""
        check_images(images, self.config.mean, self.config.std)
        return self.average.encoder.features(self.average.mapped(images))


def usage(ids: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """(share of the vocabulary that occurs, perplexity exp(H) of the frequencies) of token ids."""
    ids = ids.flatten()
    counts = torch.zeros(vocab, device=ids.device).scatter_add_(0, ids, torch.ones(len(ids), device=ids.device))
    share = counts / counts.sum()
    return (counts > 0).float().mean(), (-torch.xlogy(share, share).sum()).exp()
