"""Learning Transferable Visual Models From Natural Language Supervision (CLIP).

Radford et al. 2021, arXiv 2103.00020.

An image tower and a text tower map into one space, where an image and its own caption are nearest
(figure 3):

    x = normalize(image tower(images) W_i),    y = normalize(text tower(texts) W_t)
    s_ij = exp(τ) · x_i·y_j
    L = ½ (1/n Σ_i −log softmax_j(s_ij)_i + 1/n Σ_j −log softmax_i(s_ij)_j)

τ is learned, starts at ln(1/0.07) and is kept at or below ln 100 (section 2.5). `loss="siglip"`
replaces L by the sigmoid loss of SigLIP (arXiv 2303.15343). `ssl_clip.loss` has both.

Accumulation is gradient caching (Gao et al. 2021, arXiv 2101.06983): the features of all
micro-batches make one loss, and the activations of a micro-batch are computed again when its
gradient is asked for.

Deviations: both towers start by the rule that the paper's code has for the text tower; it leaves
vision blocks at PyTorch's defaults. A crop has 90 to 100 % of the image's area (open_clip's), the
paper's is a random square of the resized image. SigLIP's b starts at the log odds of a match in the
batch, −ln(n − 1), which is the paper's −10 at its batch of 32,768. From −10, b takes thousands of
steps to reach the value that a small batch needs, and until then all embeddings are pulled
together. Expected (the paper, table 11): ViT-B/32, B/16, L/14 63.2, 68.3, 75.3 % zero-shot on
ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_clip.captions import WithTokenizer
from ssl_clip.config import CLIPConfig
from ssl_clip.lit import plain_vit
from ssl_clip.loss import clip_loss_and_top1, siglip_loss_and_top1
from ssl_clip.resnet import ResNetTower
from ssl_clip.towers import ImageTower, TextTower
from ssl_core.config import ConfigError
from ssl_core.encoder import ImageEncoder

MAX_SCALE = 100
"""Largest factor of a cosine, exp(τ)."""


class CLIP(nn.Module, ImageEncoder, WithTokenizer):
    """Image and text tower in one space, built from a `CLIPConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std. Texts are strings, once there is a tokenizer (`from_pretrained` reads it, training makes
    it), or token ids (b, t).
    """

    config_class = CLIPConfig
    layout = "ssl_clip.convert:LAYOUTS[clip]"
    accumulates = "jointly"
    can_collapse = True
    logit_bias: nn.Parameter | None

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        # The towers, and the projections W_i and W_t behind them.
        # A ResNet's attention pool ends in a projection of its own.
        towers = {"clip": ImageTower, "resnet": ResNetTower, "vit": plain_vit}
        self.vision_model = towers[config.tower](config)
        self.text_model = TextTower(config)
        in_pool = config.tower == "resnet"
        self.visual_projection = nn.Identity() if in_pool else _projection(config.dim, config.embed_dim)
        self.text_projection = _projection(config.text_dim, config.embed_dim)
        # The logits' scale exp(τ), and the bias b that SigLIP adds to them.
        # SigLIP's t' and b make every pair a mismatch at first, as nearly all are.
        sigmoid = config.loss == "siglip"
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10 if sigmoid else 1 / 0.07)))
        prior = -math.log(max(2, config.batch_size) - 1)
        self.register_parameter("logit_bias", nn.Parameter(torch.tensor(prior)) if sigmoid else None)
        self.vision_model.requires_grad_(not config.lock_image)

    @property
    def encoder(self) -> nn.Module:
        """The image tower, which `encode` and `patch_features` read.

        Its features are not projected, as in the paper's linear probes. Only a ResNet's are, whose
        attention pool ends in the projection.
        """
        return self.vision_model

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of the pairs `batch["views"][0]` (b, c, h, w) and `batch["input_ids"]` (b, t).

        Or that of all pairs in `batch["micro_batches"]`: only one micro-batch's activations are
        kept at a time, and the gradient is that of the joined batch, for the scale too. Raises
        ConfigError for several micro-batches under batch norm, whose statistics would differ.
        """
        parts = batch.get("micro_batches", [batch])
        if len(parts) > 1 and self.config.tower == "resnet" and not self.config.lock_image:
            raise ConfigError("a ResNet's batch norm sees each micro-batch alone: train it without --accumulate")

        # Both towers, a micro-batch at a time. Of several, only the features stay in memory.
        encode = self._encode_pairs if len(parts) == 1 else self._encode_pairs_again_in_backward
        pairs = [encode(part["views"][0], part["input_ids"]) for part in parts]
        image, text = (torch.cat(side) for side in zip(*pairs, strict=True))  # n d, n d

        # One loss over all pairs, on logits = scale · image @ text.T (+ bias).
        scale = self.logit_scale.exp()  # exp(τ), a scalar
        if self.logit_bias is None:
            loss, top1 = clip_loss_and_top1(image, text, scale)
        else:
            loss, top1 = siglip_loss_and_top1(image, text, scale, self.logit_bias)
        return {"loss": loss, "top1": top1, "scale": scale.detach()}

    def _encode_pairs(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_image(images), self.encode_text(ids)

    def _encode_pairs_again_in_backward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        # Gradient caching: the backward pass computes the activations once more.
        return checkpoint(self._encode_pairs, images, ids, use_reentrant=False)  # type: ignore[return-value]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.logit_scale.clamp_(max=math.log(MAX_SCALE))

    def train(self, mode: bool = True) -> CLIP:
        super().train(mode)
        if self.config.lock_image:
            self.vision_model.eval()  # its batch norms keep their statistics
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        """(b, embed_dim) of length 1."""
        return F.normalize(self.visual_projection(self.encode(images)), dim=-1)  # b embed_dim

    def encode_text(self, texts: Tensor | str | Sequence[str]) -> Tensor:
        """(b, embed_dim) of length 1, of token ids (b, t) or of texts.

        Raises TextError for an empty text, one that is longer than the context, or texts without a
        tokenizer.
        """
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return F.normalize(self.text_projection(self.text_model(ids)), dim=-1)

    def logits(self, images: Tensor, texts: Tensor | str | Sequence[str]) -> Tensor:
        """How well each image fits each text, scaled as trained, (b, t)."""
        return self.logits_of(self.encode_image(images), self.encode_text(texts))

    def logits_of(self, image: Tensor, text: Tensor) -> Tensor:
        """`logits` of encoded images (b, d) and texts (t, d)."""
        logits = self.logit_scale.exp() * image @ text.T  # b t
        return logits if self.logit_bias is None else logits + self.logit_bias


def _projection(width: int, common: int) -> nn.Linear:
    """W_i or W_t, from a tower's width to that of the common space, N(0, 1/width)."""
    linear = nn.Linear(width, common, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear
