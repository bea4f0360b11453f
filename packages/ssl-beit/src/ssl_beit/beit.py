"""BEiT: BERT Pre-Training of Image Transformers (Bao et al. 2021, arXiv 2106.08254).

Blocks of an image's patches are hidden. For each hidden patch a ViT predicts the visual token that
a discrete VAE gives the same place of the whole image.

    z = argmax tokenizer(view₂)                                                     (section 2.3)
    L = −1/Σm · Σ_{i: m_i = 1} log p(z_i | view₁ with m hidden)

view₁ and view₂ are one crop in two sizes, so that token i and patch i show the same. A learned
embedding replaces that of a hidden patch. There are no absolute positions: all blocks add one
learned table of relative positions to the attention's logits. Queries and values have a bias, keys
have none. LayerScale. Only hidden patches go through the head.

Weights start from N(0, 0.02²) cut at ± 0.02, the table at 0. The projections at the end of the
branches of block l = 1, 2, … are divided by √(2 l).

Deviations from the authors' code: the learning rate reaches its peak one step later, as in the
other packages. The division by Σm is over all processes and micro-batches.

Expected (the authors' README): ViT-B fine-tuned 83.2 % on ImageNet, 83.7 % pretrained on
ImageNet-22k.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_beit.config import BEiTConfig
from ssl_beit.dvae import DVAE, Tokenizer
from ssl_beit.positions import RelativeBias
from ssl_core import distributed
from ssl_core.config import ConfigError
from ssl_core.device import wide
from ssl_core.encoder import ImageEncoder
from ssl_core.hub.pretrained import Pretrained
from ssl_core.patches import grid_of, take_tokens
from ssl_core.vit import Attention, Block, PatchEmbed, attention, pooled

INIT_STD = 0.02


def beit_loss(logits: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of hidden patches: Σ weight · CE / Σ weight, over all processes; fp32.

    logits (b, k, vocab), tokens (b, k) ids, weight (b, k): 1 for hidden patches, 0 for others.
    """
    loss = F.cross_entropy(wide(logits).flatten(0, 1), tokens.flatten(), reduction="none")  # b·k
    total = distributed.all_reduce_sum(weight.sum().to(loss.dtype)).clamp(min=1)
    # DDP takes the mean over processes, hence their number.
    return (loss * weight.flatten()).sum() * distributed.world_size() / total


def masked_first(mask: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """(patch ids, weights), (b, budget) each: first those that `mask` (b, n) hides, with weight 1.

    Seen patches fill the rest, with weight 0. So every image has as many, and the head works on one
    dense tensor.
    """
    ids = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :budget]  # b k
    return ids, mask.gather(1, ids).float()


class RelativeAttention(Attention):
    """Attention with a bias of the logits, and no bias of the keys."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__(dim=dim, heads=heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (b, heads, n, d) each."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)  # b n 3·heads·d
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return q, k, v

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        x = attention(*self.split(x), bias)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))


class RelativeBlock(Block):
    """The core's block with `RelativeAttention`; in fine-tuned models each has its own table."""

    def __init__(self, config: BEiTConfig, *, drop_path: float) -> None:
        names = ("dim", "heads", "mlp_ratio", "layer_norm_eps", "layer_scale")
        super().__init__(**{name: getattr(config, name) for name in names}, drop_path=drop_path)
        self.attn = RelativeAttention(dim=config.dim, heads=config.heads)
        self.rel_pos_bias = None if config.shared_bias else RelativeBias(config.grid, config.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Encoder(nn.Module):
    """ViT with relative positions, for images of any size that the patch divides."""

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__()
        self.in_channels, self.pool = config.in_channels, config.pool
        self.patch_embed = PatchEmbed(patch_size=config.patch_size, in_channels=config.in_channels, dim=config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.vocab else None
        self.rel_pos_bias = RelativeBias(config.grid, config.heads) if config.shared_bias else None
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(RelativeBlock(config, drop_path=rate) for rate in rates)
        # The last norm sees every token, or in fine-tuned models the pooled vector.
        norm, none = nn.LayerNorm(config.dim, eps=config.layer_norm_eps), nn.Identity()
        self.norm, self.fc_norm = (norm, none) if config.final_norm == "tokens" else (none, norm)
        self.init_weights()

    def init_weights(self) -> None:
        """A cut normal; residual branches end in smaller weights in deeper blocks (section 2.5)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                truncated_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        truncated_normal(self.cls_token)
        if self.mask_token is not None:
            truncated_normal(self.mask_token)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                for end in ("attn.proj", "mlp.fc2"):
                    block.get_parameter(f"{end}.weight").div_((2 * number) ** 0.5)

    def tokens(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens after the last block, CLS first, not normalised, (b, 1 + n, d).

        Patches of `mask` (b, n) bool are hidden.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must be (b, {self.in_channels}, h, w), got {tuple(images.shape)}")
        grid = grid_of(images, self.patch_embed.patch_size)
        x = self.patch_embed(images)  # b n d

        # A hidden patch is the mask token: nothing but its place is left.
        if mask is not None:
            if self.mask_token is None:
                raise ConfigError("vocab = 0: this is an encoder alone, it has no mask token")
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)  # b 1+n d

        # Positions enter in the attention of each block.
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)
        for block in self.blocks:
            x = block(x, block.rel_pos_bias(grid) if shared is None else shared)  # type: ignore[operator]
        return x

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, d): CLS or the mean of the patches."""
        return self.fc_norm(pooled(self.norm(self.tokens(images)), self.pool))

    def patch_features(self, images: Tensor) -> Tensor:
        """Patch tokens on their grid, (b, h, w, d)."""
        h, _ = grid_of(images, self.patch_embed.patch_size)
        return rearrange(self.norm(self.tokens(images))[:, 1:], "b (h w) d -> b h w d", h=h)


def truncated_normal(weight: Tensor) -> None:
    """N(0, 0.02²) cut at one standard deviation, which leaves a deviation of 0.01079."""
    nn.init.trunc_normal_(weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD)


class BEiT(nn.Module, ImageEncoder, Pretrained):
    """BEiT with its tokenizer, sizes and recipe from a `BEiTConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std. The tokenizer's view is uint8 or float in [0, 1].
    """

    config_class = BEiTConfig
    layout = "ssl_beit.convert:LAYOUTS[beit]"
    accumulates = True

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        # An encoder alone has neither head nor tokenizer.
        self.lm_head = nn.Linear(config.dim, config.vocab) if config.vocab else None
        if self.lm_head is not None:
            truncated_normal(self.lm_head.weight)
            nn.init.zeros_(self.lm_head.bias)
        self.tokenizer = None
        if config.tokenizer_hidden:
            sizes = {"hidden": config.tokenizer_hidden, "blocks": config.tokenizer_blocks}
            sizes |= {"init": config.tokenizer_init, "vocab": config.vocab, "channels": config.in_channels}
            self.tokenizer = Tokenizer(**sizes).requires_grad_(False)

    def adopt(self, dvae: DVAE) -> None:
        """Take over a trained tokenizer of any size.

        Raises ConfigError if its vocabulary or its channels are not this method's.
        """
        sizes = dvae.config
        for name in ("vocab", "in_channels"):
            ours, its = getattr(self.config, name), getattr(sizes, name)
            if its != ours:
                flag = name.replace("_", "-")
                raise ConfigError(f"{name} = {ours}: the tokenizer's is {its}: give --{flag} {its}")
        self.tokenizer = dvae.average.requires_grad_(False)
        # The config now has the sizes of this tokenizer, and names no other: it is inside.
        inside = {"tokenizer": None, "tokenizer_hidden": sizes.hidden, "tokenizer_blocks": sizes.blocks}
        self.config = dataclasses.replace(self.config, **inside, tokenizer_init=sizes.decoder_init)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of `batch["views"]`, the encoder's and the tokenizer's, and `batch["mask"]` (b, n).

        Logs the accuracy on hidden patches, and what the batch's most frequent token alone would
        reach.
        """
        images, pixels = batch["views"]
        mask = batch["mask"]  # b n
        tokens = self.tokenize(pixels).flatten(1)  # b n: the tokenizer sees the whole image

        # The head works on `mask_patches` patches of each image. A mask beyond that is an error, as
        # a cut one would be another loss.
        ids, weight = masked_first(mask, self.config.mask_patches)  # b k
        torch._assert_async(weight.sum() == mask.sum(), "a mask hides more than mask_patches patches")

        x = self.encoder.tokens(self.normalized(images), mask)[:, 1:]  # b n d
        logits = self.head(take_tokens(x, ids))  # b k vocab
        tokens = tokens.gather(1, ids)  # b k
        loss = beit_loss(logits, tokens, weight)

        # How often each token is the answer.
        counts = logits.new_zeros(self.config.vocab, dtype=torch.float32)
        counts.scatter_add_(0, tokens.flatten(), weight.flatten())
        hits = (logits.argmax(-1) == tokens) * weight
        hidden = weight.sum().clamp(min=1)
        accuracy, most_frequent = hits.sum() / hidden, counts.max() / hidden
        return {"loss": loss, "accuracy": accuracy, "most_frequent": most_frequent}

    def targets(self, batch: dict[str, Any]) -> int:
        """Hidden patches of a batch, over which its loss is a mean."""
        return int(batch["mask"].sum())

    def head(self, x: Tensor) -> Tensor:
        """Logits (…, vocab) of tokens (…, d). Raises ConfigError for an encoder alone."""
        if self.lm_head is None:
            raise ConfigError("vocab = 0: this is an encoder alone, it has no head")
        return self.lm_head(self.encoder.norm(x))

    def logits(self, images: Tensor, mask: Tensor) -> Tensor:
        """Logits of every patch, (b, n, vocab), with the patches of `mask` (b, n) bool hidden.

        Raises ValueError for a mask of another shape or dtype.
        """
        h, w = grid_of(images, self.config.patch_size)
        b, n = len(images), h * w
        if mask.shape != (b, n) or mask.dtype != torch.bool:
            found = f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"mask must be bool ({b}, {n}), one value per patch, got {found}")
        return self.head(self.encoder.tokens(self.normalized(images), mask)[:, 1:])

    @torch.no_grad()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """Token ids (b, h, w) of images (b, c, 8h, 8w), uint8 or in [0, 1].

        Raises ConfigError without a tokenizer.
        """
        return self.required_tokenizer().tokenize(pixels)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Images (b, c, 8h, 8w) in [0, 1] of token ids (b, h, w).

        Raises ConfigError without a tokenizer.
        """
        return self.required_tokenizer().decode(ids)

    def required_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ConfigError if there is none."""
        if self.tokenizer is None:
            raise ConfigError("tokenizer_hidden = 0: these weights hold no tokenizer; `adopt` takes over one")
        return self.tokenizer

    def param_groups(self, config: BEiTConfig) -> list[dict[str, Any]]:
        """Matrices with weight decay; 1-D tensors and CLS without (the authors' rule)."""
        groups: list[dict[str, Any]] = [{"params": [], "weight_decay": w} for w in (config.weight_decay, 0.0)]
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim <= 1 or name == "encoder.cls_token"
                groups[plain]["params"].append((name, parameter))
        return groups
