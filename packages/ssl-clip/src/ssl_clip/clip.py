"""Learning Transferable Visual Models From Natural Language Supervision (CLIP, Radford et al. 2021, arXiv 2103.00020).

An image tower and a text tower map into one space, where an image and its own caption are nearest (figure 3):

    s_ij = exp(τ) · x_i·y_j,    x, y L2-normalised
    L = ½ (1/n Σ_i −log softmax_j(s_ij)_i + 1/n Σ_j −log softmax_i(s_ij)_j)

τ is learned, starts at ln(1/0.07) and is kept at or below ln 100 (section 2.5); `loss="siglip"` replaces L by the
sigmoid loss of `ssl_clip.siglip`.

Computed otherwise than in open_clip, with the same result: of the n × n logits at most 256 MB are stored. One pass over blocks
of rows finds log-sum-exp of rows and columns, a second one the gradient. Processes share texts and column sums only, so
that each block of logits is computed by one of them, once.
Accumulation is gradient caching (Gao et al. 2021, arXiv 2101.06983): the features of all micro-batches make one loss,
and a micro-batch's activations are computed again when its gradient is asked for.

Deviation: both towers start by the rule that the paper's code has for the text tower; it leaves vision blocks at
PyTorch's defaults. Expected (the paper, table 11): ViT-B/32, B/16, L/14 63.2, 68.3, 75.3 % zero-shot on ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_clip.config import CLIPConfig
from ssl_clip.convert import LAYOUT, OPEN_CLIP_CONFIG, is_open_clip, read_open_clip
from ssl_clip.lit import PlainTower, load_image_tower
from ssl_clip.pairwise import all_rows, check_pairs, exact, full_precision, own_rows, row_blocks
from ssl_clip.resnet import ResNetTower
from ssl_clip.siglip import siglip_statistics
from ssl_clip.tokenizer import TokenizedPairs, Tokenizer
from ssl_clip.towers import ImageTower, TextTower
from ssl_core import distributed
from ssl_core.config import ConfigError
from ssl_core.hub.layout import WEIGHTS, Layout, read_state
from ssl_core.hub.pretrained import Pretrained
from ssl_core.pixels import normalize

KEPT = 2**26
"""Logits that are kept from the first pass for the second, 256 MB in fp32; those of further rows are computed again."""
NARROW = 60.0
"""exp(±60) and sums of millions of them are normal numbers in fp32."""


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric loss of n pairs: `image` and `text` (n, d), row i of one belonging to row i of the other.

    `logit_scale` is exp(τ), a scalar. Called by every process of a group, each with as many rows as it has, it gives
    all of them the loss of the whole batch, and DDP's mean of the gradients, of the scale too, is the gradient of one
    process. Computed in fp32 (fp64 for fp64 input). Raises ValueError when the shapes differ.
    """
    return clip_statistics(image, text, logit_scale)[0]


def clip_statistics(image: Tensor, text: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, share of images whose own text has the largest logit); the share has no gradient."""
    check_pairs(image, text)
    with full_precision(image.device):
        return _CLIPLoss.apply(*exact(image, text, logit_scale))  # type: ignore[no-any-return]


class _CLIPLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        texts, first = all_rows(text)
        n, total = image.shape[0], texts.shape[0]
        scaled, narrow = image * scale, _is_narrow(image, texts, scale)
        rows, hits, kept = image.new_zeros(n), image.new_zeros(n), []
        peak, mass = image.new_full((total,), 0.0 if narrow else -torch.inf), image.new_zeros(total)  # of columns
        for start, stop in row_blocks(n, total):
            logits = scaled[start:stop] @ texts.T
            top = logits.amax(1)
            own = torch.arange(first + start, first + stop, device=image.device)[:, None]
            hits[start:stop] = (logits.gather(1, own)[:, 0] >= top).to(hits.dtype)
            if not narrow:
                rows[start:stop] = (logits - top[:, None]).exp_().sum(1).log_().add_(top)
                higher = torch.maximum(peak, logits.amax(0))
                mass, peak = mass * (peak - higher).exp() + (logits - higher).exp_().sum(0), higher
            else:
                logits.exp_()
                rows[start:stop] = logits.sum(1).log_()
                mass += logits.sum(0)
            if any(ctx.needs_input_grad) and stop * total <= KEPT:
                kept.append(logits)
        columns = distributed.gather((peak + mass.log())[None], [1] * distributed.world_size()).logsumexp(0)
        positives = (scaled * texts[first : first + n]).sum(1)
        parts = torch.stack([(rows + columns[first : first + n] - 2 * positives).sum() / 2, hits.sum()])
        loss, share = distributed.all_reduce_sum(parts) / total
        ctx.mark_non_differentiable(share)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*_gradient(scaled, texts, scale, rows, columns, first, kept, narrow))
        return loss, share

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(grad * part for part in ctx.saved_tensors)


def _is_narrow(image: Tensor, texts: Tensor, scale: Tensor) -> bool:
    """Whether every logit is small enough for sums of its exponential: then one exponential serves rows and columns.

    Unit vectors under a scale of at most NARROW are. A compiled graph does not ask, nor one without data.
    """
    if torch.compiler.is_compiling() or image.is_meta:
        return False
    return bool(scale.abs() * image.norm(dim=1).amax() * texts.norm(dim=1).amax() <= NARROW)


def _gradient(
    scaled: Tensor, texts: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, first: int,
    kept: list[Tensor], narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of own images, own texts and the scale, from the log-sum-exp of rows (n,) and columns (n_total,).

    `scaled` are the own images times the scale, `kept` the first blocks: logits, or where they are `narrow` their
    exponentials.
    """
    n, total = scaled.shape[0], texts.shape[0]
    d_image, d_texts, d_scale = torch.empty_like(scaled), torch.zeros_like(texts), scaled.new_zeros(())
    for block, (start, stop) in enumerate(row_blocks(n, total)):
        stored = block < len(kept)
        logits = kept[block] if stored else scaled[start:stop] @ texts.T
        if narrow:
            slope = (logits if stored else logits.exp_()).mul_((-rows[start:stop, None]).exp() + (-columns).exp())
        else:
            slope = (logits - rows[start:stop, None]).exp_().add_(logits.sub_(columns).exp_())
        own = torch.arange(first + start, first + stop, device=scaled.device)[:, None]
        slope.scatter_add_(1, own, slope.new_full(own.shape, -2))
        d_image[start:stop] = slope @ texts
        d_scale += (d_image[start:stop] * scaled[start:stop]).sum()
        d_texts.addmm_(slope.T, scaled[start:stop])
    unit = distributed.world_size() / (2 * total)  # DDP divides by the number of processes
    return d_image.mul_(unit * scale), own_rows(d_texts, n, first).mul_(unit), d_scale * unit / scale


class CLIP(nn.Module, Pretrained):
    """Image and text tower in one space, built from a `CLIPConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and std. Texts are
    strings, once there is a tokenizer (`from_pretrained` reads it, training makes it), or token ids (b, t).
    """

    config_class = CLIPConfig
    accumulates = "jointly"
    can_collapse = True
    LIMIT = math.log(100)
    """of `logit_scale`"""
    logit_bias: nn.Parameter | None

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.loaded = False
        towers = {"clip": ImageTower, "resnet": ResNetTower, "vit": PlainTower}
        self.vision_model = towers[config.tower](config)
        self.text_model = TextTower(config)
        if config.tower != "resnet":
            self.visual_projection = nn.Linear(config.dim, config.embed_dim, bias=False)
            nn.init.normal_(self.visual_projection.weight, std=config.dim**-0.5)
        self.text_projection = nn.Linear(config.text_dim, config.embed_dim, bias=False)
        nn.init.normal_(self.text_projection.weight, std=config.text_dim**-0.5)
        sigmoid = config.loss == "siglip"
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10 if sigmoid else 1 / 0.07)))
        prior = -math.log(max(2, config.batch_size) - 1)  # log odds of a match, -10.4 at 32,768
        self.register_parameter("logit_bias", nn.Parameter(torch.tensor(prior)) if sigmoid else None)
        self.vision_model.requires_grad_(not config.lock_image)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> CLIP:
        """`ssl_core.hub.pretrained.Pretrained.from_pretrained`; reads open_clip's folders and checkpoints too.

        A bare checkpoint file does not say its activation: it needs `config`. Raises as there.
        """
        if Path(name).is_file() and Path(name).name != WEIGHTS and options.get("config") is None:
            raise ConfigError(
                f"{name} says nothing of its activation: give config=, or put it beside {OPEN_CLIP_CONFIG}"
            )
        method = super().from_pretrained(name, **options)
        method.loaded = True
        return method

    @classmethod
    def read(cls, path: Path) -> tuple[dict[str, Tensor], list[str], CLIPConfig]:
        if not path.is_dir() or not is_open_clip(path):
            return super().read(path)
        file, config = read_open_clip(path)
        return *read_state(file, cls.layout()), config

    @classmethod
    def layout(cls) -> Layout:
        return LAYOUT

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of the pairs `batch["views"][0]` and `batch["input_ids"]` (b, t), or of all of `batch["micro_batches"]`.

        Micro-batches keep one's activations at a time and give the gradient of the joined batch, to the scale too.
        Raises ConfigError for several of them under batch norm, whose statistics would differ.
        """
        parts = batch.get("micro_batches", [batch])
        if len(parts) > 1 and self.config.tower == "resnet" and not self.config.lock_image:
            raise ConfigError("a ResNet's batch norm sees each micro-batch alone: train it without --accumulate")
        pairs = [self._features(part["views"][0], part["input_ids"], keep=len(parts) == 1) for part in parts]
        image, text = (torch.cat(side) for side in zip(*pairs, strict=True))
        scale = self.logit_scale.exp()
        if self.logit_bias is None:
            loss, top1 = clip_statistics(image, text, scale)
        else:
            loss, top1 = siglip_statistics(image, text, scale, self.logit_bias)
        return {"loss": loss, "top1": top1, "scale": scale.detach()}

    def _features(self, images: Tensor, ids: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
        """Both features of a micro-batch; its activations are kept for the backward pass or computed again there."""
        if keep:
            return self.encode_image(images), self.encode_text(ids)
        return checkpoint(lambda: (self.encode_image(images), self.encode_text(ids)), use_reentrant=False)  # type: ignore[return-value]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.logit_scale.clamp_(max=self.LIMIT)

    def train(self, mode: bool = True) -> CLIP:
        super().train(mode)
        if self.config.lock_image:
            self.vision_model.eval()  # its batch norms keep their statistics
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        """(b, embed_dim) of length 1."""
        pooled = self.encode(images)
        return F.normalize(pooled if self.config.tower == "resnet" else self.visual_projection(pooled), dim=-1)

    def encode_text(self, texts: Tensor | str | Sequence[str]) -> Tensor:
        """(b, embed_dim) of length 1, of token ids (b, t) or of texts.

        Raises TextError for an empty text, one that is longer than the context, or texts without a tokenizer.
        """
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return F.normalize(self.text_projection(self.text_model(ids)), dim=-1)

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool | None = None) -> Tensor:
        """Token ids (b, context_length) on the model's device; `truncate` is the config's by default. Raises TextError."""
        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer: give token ids, or load a folder that holds its files")
        cut = self.config.truncate if truncate is None else truncate
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.tokenizer(texts, self.config.context_length, truncate=cut).to(self.logit_scale.device)

    def logits(self, images: Tensor, texts: Tensor | str | Sequence[str]) -> Tensor:
        """How well each image fits each text, scaled as trained, (b, t)."""
        return self.logits_of(self.encode_image(images), self.encode_text(texts))

    def logits_of(self, image: Tensor, text: Tensor) -> Tensor:
        """`logits` of encoded images (b, d) and texts (t, d)."""
        logits = self.logit_scale.exp() * image @ text.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d) of images before the projection into the common space, as the paper's linear probes (a
        ResNet's attention pool ends in it)."""
        return self.vision_model(normalize(images, self.config.mean, self.config.std))

    def patch_features(self, images: Tensor) -> Tensor:
        """Features of the patches, (b, h, w, d), not projected."""
        return self.vision_model.patch_features(normalize(images, self.config.mean, self.config.std))  # type: ignore[operator]

    def attach(self, source: Any) -> Any:
        """Pairs as token ids; the tokenizer is the weights' own, else the config's, else trained on these captions.

        At the start of a run the image tower takes the weights of `config.init_image`. A source without captions is
        returned as it is. Raises ConfigError when the tokenizer does not fit the config.
        """
        if not hasattr(source, "captions"):
            return source
        if self.tokenizer is None:
            if self.loaded and self.config.tokenizer is None:
                raise ConfigError("these weights came without a tokenizer: give theirs with --tokenizer")
            self.tokenizer = Tokenizer.for_training(self.config, source)
            if self.config.init_image is not None and not self.loaded:
                load_image_tower(self.vision_model, self.config)
        self.tokenizer.check(self.config)
        return TokenizedPairs(source, self.tokenizer, self.config)

    def save_preprocessor(self, folder: Path) -> None:
        super().save_preprocessor(folder)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    def load_preprocessor(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.find(folder)
