"""BEiT: BERT Pre-Training of Image Transformers (Bao et al. 2021, arXiv 2106.08254).

Blocks of an image's patches are hidden; a ViT predicts for each hidden patch the visual token that a discrete VAE gives
the same place of the whole image.

    z = argmax tokenizer(view₂),  L = −1/Σm · Σ_{i: m_i = 1} log p(z_i | view₁ with m hidden)          (section 2.3)

view₁ and view₂ are one crop in two sizes, so that token and patch i show the same. A hidden patch's embedding is replaced
by a learned one. There are no absolute positions: a table of relative ones, shared by the blocks, is added to the
attention's logits. Queries and values have a bias, keys have none; LayerScale. Only hidden patches meet the head.

Weights start from N(0, 0.02²) cut at ± 0.02, the table at 0, and the projections that end the branches of block l are
divided by √(2 l), l = 1, 2, …

Deviations from the authors' code: none in the result. The division by Σm is over all processes.

Expected (the authors' README): ViT-B fine-tuned 83.2 % on ImageNet, 83.7 % pretrained on ImageNet-22k.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_beit.config import PRESETS, BEiTConfig
from ssl_beit.dvae import DVAE, Tokenizer
from ssl_core import distributed
from ssl_core.config import ConfigError
from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.patches import grid_of, take_tokens
from ssl_core.pixels import normalize
from ssl_core.vit import Attention, Block, PatchEmbed, attention
from ssl_train.options import RunOptions

INIT_STD = 0.02


def beit_loss(logits: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of masked patches: Σ weight · CE / Σ weight, over the samples of all processes; fp32.

    logits (b, k, vocab), tokens (b, k) ids, weight (b, k), 1 for masked and 0 for padding.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(wide.flatten(0, 1), tokens.flatten(), reduction="none")
    total = distributed.all_reduce_sum(weight.sum().to(wide.dtype))
    # DDP takes the mean over processes, hence their number.
    return (loss * weight.flatten()).sum() * distributed.world_size() / total


def masked_first(mask: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """(patch ids (b, budget), those that `mask` (b, n) hides first; 1 where one is hidden, else 0).

    The same number for every sample, so that the head works on one dense tensor.
    """
    ids = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :budget]
    return ids, mask.gather(1, ids).float()


def relative_positions(grid: tuple[int, int]) -> Tensor:
    """Row of the table for each (query, key), (1 + n, 1 + n) int64, CLS first.

    (2w − 1)(Δr + h − 1) + Δc + w − 1 for patches, Δ = query − key; then one row each for CLS → patch, patch → CLS and
    CLS → CLS.
    """
    h, w = grid
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    between = (2 * w - 1) * (rows[:, None] - rows + h - 1) + columns[:, None] - columns + w - 1  # n n
    index = torch.empty(h * w + 1, h * w + 1, dtype=torch.long)
    index[1:, 1:] = between
    last = (2 * h - 1) * (2 * w - 1) + 2
    index[0], index[:, 0], index[0, 0] = last - 2, last - 1, last
    return index


def interpolate_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table (rows, heads) of an `old` grid for a `new` one: bilinear over the offsets, CLS's rows as they are."""
    if old == new:
        return table
    sides, wanted = (tuple(2 * side - 1 for side in grid) for grid in (old, new))
    offsets = rearrange(table[:-3], "(h w) heads -> 1 heads h w", h=sides[0])
    offsets = F.interpolate(offsets.float(), size=wanted, mode="bilinear").to(table.dtype)
    return torch.cat([rearrange(offsets, "1 heads h w -> (h w) heads"), table[-3:]])


class RelativeBias(nn.Module):
    """Learned bias of the attention logits by relative position, 0 at first."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.grid = grid
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.register_buffer("index", relative_positions(grid), persistent=False)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(heads, 1 + n, 1 + n) for a grid of patches."""
        table = interpolate_table(self.relative_position_bias_table, self.grid, grid)
        index = self.index if grid == self.grid else relative_positions(grid).to(table.device)
        return rearrange(F.embedding(index, table), "n m heads -> heads n m")


class RelativeAttention(Attention):
    """Attention with a bias of the logits, and none of the keys."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__(dim=dim, heads=heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return q, k, v

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        x = attention(*self.split(x), bias)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))


class RelativeBlock(Block):
    """The core's block around `RelativeAttention`; a fine-tuned model's has a table of its own."""

    def __init__(self, config: BEiTConfig, *, drop_path: float) -> None:
        super().__init__(
            dim=config.dim, heads=config.heads, mlp_ratio=config.mlp_ratio, layer_norm_eps=config.layer_norm_eps,
            drop_path=drop_path, layer_scale=config.layer_scale,
        )  # fmt: skip
        self.attn = RelativeAttention(dim=config.dim, heads=config.heads)
        self.rel_pos_bias = None if config.shared_bias else RelativeBias(config.grid, config.heads)

    def forward(self, x: Tensor, bias: Tensor | None, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        if self.rel_pos_bias is not None:
            bias = self.rel_pos_bias(grid)
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Encoder(nn.Module):
    """ViT without absolute positions, over images of any size that the patch divides."""

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size=config.patch_size, in_channels=config.in_channels, dim=config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.vocab else None
        self.rel_pos_bias = RelativeBias(config.grid, config.heads) if config.shared_bias else None
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(RelativeBlock(config, drop_path=rate) for rate in rates)
        norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.norm, self.fc_norm = (None, norm) if config.final_norm == "pooled" else (norm, None)
        self.init_weights()

    def init_weights(self) -> None:
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

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens after the last block, not normalised, (b, 1 + n, d), CLS first; patches of `mask` (b, n) are hidden."""
        grid = grid_of(images, self.patch_embed.patch_size)
        x = self.patch_embed(images)
        if mask is not None:
            if self.mask_token is None:
                raise ConfigError("vocab = 0: this is an encoder alone, it has no mask token")
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)
        for block in self.blocks:
            x = block(x, bias, grid)
        return x


def truncated_normal(weight: Tensor) -> None:
    """N(0, 0.02²) cut at one standard deviation, which leaves a deviation of 0.01079."""
    nn.init.trunc_normal_(weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD)


class BEiT(Pretrained, nn.Module):
    """BEiT with its tokenizer, sizes and recipe from a `BEiTConfig`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and std; the tokenizer's
    view is uint8 or float in [0, 1].
    """

    config_class = BEiTConfig

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.lm_head = nn.Linear(config.dim, config.vocab) if config.vocab else None
        if self.lm_head is not None:
            truncated_normal(self.lm_head.weight)
            nn.init.zeros_(self.lm_head.bias)
        self.tokenizer = (
            Tokenizer(
                channels=config.in_channels, hidden=config.tokenizer_hidden, blocks=config.tokenizer_blocks,
                vocab=config.vocab, init=config.tokenizer_init,
            ).requires_grad_(False)
            if config.tokenizer_hidden
            else None
        )  # fmt: skip

    @classmethod
    def layout(cls) -> Layout:
        from ssl_beit.convert import BEIT_LAYOUT

        return BEIT_LAYOUT

    def prepare(self, *, data: str | Path | None, init: str | Path | None, folder: Path, options: RunOptions) -> None:
        """Bring the tokenizer that `config.tokenizer` names, before the first step of a run in `folder`.

        The name of one of its presets trains it first, into `folder/tokenizer`, and says so.
        Raises ConfigError when there is none, or one of another vocabulary.
        """
        config = self.config
        if not config.vocab:
            raise ConfigError("vocab = 0: an encoder alone cannot be pretrained")
        if config.tokenizer is None:
            if init is None or self.tokenizer is None:
                raise ConfigError("tokenizer = None: nothing brings a tokenizer; give --tokenizer FOLDER or a preset")
            return
        if config.tokenizer not in PRESETS["dvae"]:
            self.adopt(DVAE.from_pretrained(config.tokenizer))
            return
        from ssl_beit.training import train

        preset = PRESETS["dvae"][config.tokenizer]()
        sizes = dataclasses.replace(
            preset, batch_size=min(preset.batch_size, config.batch_size), seed=config.seed,
            image_size=config.tokenizer_size, vocab=config.vocab,
            in_channels=config.in_channels, mean=(0.0,) * config.in_channels, std=(1.0,) * config.in_channels,
            precision=config.precision,
        )  # fmt: skip
        out = folder / "tokenizer"
        if distributed.is_main():
            print(f"no tokenizer given: training one first, preset {config.tokenizer!r}, into {out}", flush=True)
        self.adopt(train(sizes, data=data, out=out, options=options))

    def adopt(self, dvae: DVAE) -> None:
        """Take over a trained tokenizer, whatever its size. Raises ConfigError for another vocabulary or channels."""
        sizes = dvae.config
        for name in ("vocab", "in_channels"):
            if getattr(sizes, name) != getattr(self.config, name):
                raise ConfigError(
                    f"{name} = {getattr(self.config, name)}: the tokenizer's is {getattr(sizes, name)}: "
                    f"give --{name.replace('_', '-')} {getattr(sizes, name)}"
                )
        self.tokenizer = dvae.average.requires_grad_(False)
        self.config = dataclasses.replace(
            self.config, tokenizer=None, tokenizer_hidden=sizes.hidden, tokenizer_blocks=sizes.blocks,
            tokenizer_init=sizes.decoder_init,
        )  # fmt: skip

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of `batch["views"]`, the encoder's view and the tokenizer's, and `batch["mask"]` (b, n) bool.

        Logs the accuracy on masked patches, and what the most frequent token of the batch would reach.
        """
        images, pixels = batch["views"]
        tokens = self.tokenize(pixels).flatten(1)  # b n
        mask = batch["mask"]
        ids, weight = masked_first(mask, self.config.mask_patches)
        torch._assert_async(weight.sum() == mask.sum(), "a mask hides more than mask_patches patches")
        x = self.encoder(self._normalized(images), mask)[:, 1:]
        logits = self._head(take_tokens(x, ids))  # b k vocab
        tokens = tokens.gather(1, ids)
        frequency = logits.new_zeros(self.config.vocab, dtype=torch.float32).scatter_add_(
            0, tokens.flatten(), weight.flatten()
        )
        hits = (logits.argmax(-1) == tokens) * weight
        return {
            "loss": beit_loss(logits, tokens, weight),
            "accuracy": hits.sum() / weight.sum(),
            "most_frequent": frequency.max() / weight.sum(),
        }

    def logits(self, images: Tensor, mask: Tensor) -> Tensor:
        """Logits of every patch, (b, n, vocab), the patches of `mask` (b, n) bool hidden. ValueError for another mask."""
        grid = grid_of(images, self.config.patch_size)
        n = grid[0] * grid[1]
        if mask.shape != (len(images), n) or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool ({len(images)}, {n}), one value per patch, got {mask.dtype} {tuple(mask.shape)}"
            )
        return self._head(self.encoder(self._normalized(images), mask)[:, 1:])

    @torch.no_grad()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """Token ids (b, h, w) of images (b, c, 8h, 8w), uint8 or in [0, 1]. Raises ConfigError without a tokenizer."""
        return self._tokenizer().tokenize(pixels)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Images (b, c, 8h, 8w) in [0, 1] of token ids (b, h, w). Raises ConfigError without a tokenizer."""
        return self._tokenizer().decode(ids)

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d) of whole images: CLS or the mean of the patches, as `config.pool` says."""
        x = self._features(images)
        x = x[:, 1:].mean(1) if self.config.pool == "mean" else x[:, 0]
        return x if self.encoder.fc_norm is None else self.encoder.fc_norm(x)

    def patch_features(self, images: Tensor) -> Tensor:
        """Features of the patches, (b, h, w, d)."""
        h, _ = grid_of(images, self.config.patch_size)
        return rearrange(self._features(images)[:, 1:], "b (h w) d -> b h w d", h=h)

    def param_groups(self, config: BEiTConfig) -> list[dict[str, Any]]:
        """Matrices with weight decay; biases, other 1-D tensors and the CLS token without (the authors' rule)."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        plain = [name for name, p in trained if p.ndim <= 1 or name == "encoder.cls_token"]
        return [
            {"params": [(n, p) for n, p in trained if n not in plain], "weight_decay": config.weight_decay},
            {"params": [(n, p) for n, p in trained if n in plain], "weight_decay": 0.0},
        ]

    def _features(self, images: Tensor) -> Tensor:
        x = self.encoder(self._normalized(images))
        return x if self.encoder.norm is None else self.encoder.norm(x)

    def _head(self, x: Tensor) -> Tensor:
        if self.lm_head is None or self.encoder.norm is None:
            raise ConfigError("vocab = 0: this is an encoder alone, it has no head")
        return self.lm_head(self.encoder.norm(x))

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ConfigError("tokenizer_hidden = 0: these weights hold no tokenizer; `adopt` takes over one")
        return self.tokenizer

    def _normalized(self, images: Tensor) -> Tensor:
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"images must be (b, {channels}, h, w), got {tuple(images.shape)}")
        return normalize(images, self.config.mean, self.config.std)
