"""Vision Transformer: pre-norm blocks, fused qkv, timm's parameter names.

An Image is Worth 16x16 Words (arXiv 2010.11929), as MAE, DINO and their kin use it: exact GELU, qkv
with bias, LayerNorm eps 1e-6, no dropout. Options of its successors: LayerScale (CaiT, arXiv
2103.17239), register tokens (arXiv 2309.16588), another MLP. A method initialises the weights by
its own paper's rule.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core.patches import PosInterp, grid_of, interpolate_positions, sincos_positions, take_tokens


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + bias) v for (b, heads, n, d) tensors and a bias that broadcasts to (b,
    heads, n, n).

    On a CPU in bf16 the fused kernel is several times slower than the plain product
    (docs/benchmarks.md), and it has no gradient for a bias; so the choice goes by device, dtype and
    bias.
    """
    if q.device.type == "cpu" and (bias is not None or q.dtype == torch.bfloat16):
        return attention_weights(q, k, bias) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """The softmax matrix itself, (b, heads, n, n)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores += bias
    return scores.softmax(-1, dtype=q.dtype)


class Attention(nn.Module):
    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        x = attention(*self.split(x))
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))

    def weights(self, x: Tensor, queries: int | None = None) -> Tensor:
        """The softmax matrix (b, heads, n, n), or its first `queries` rows alone."""
        q, k, _ = self.split(x)
        return attention_weights(q[:, :, :queries], k)


class Mlp(nn.Module):
    def __init__(self, *, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel at the end of a residual branch, `init` at first."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Drops a residual branch for whole samples with probability `rate`; identity in eval mode."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """x + attention, x + MLP, each of the normalised x. `layer_scale` is the initial factor of both
    branches."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        mlp_ratio: float = 4,
        layer_norm_eps: float = 1e-6,
        drop_path: float = 0,
        layer_scale: float | None = None,
        mlp: type[nn.Module] = Mlp,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attn = Attention(dim=dim, heads=heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = mlp(dim=dim, hidden=round(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Patches to tokens. The weights are a convolution's (as in every checkpoint), the work is one
    matrix product, so that patches nobody looks at are dropped before it."""

    def __init__(self, *, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        p = self.patch_size
        x = rearrange(images.to(self.proj.weight.dtype), "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        if keep is not None:
            x = take_tokens(x, keep)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


def pooled(tokens: Tensor, pool: str) -> Tensor:
    """Tokens (b, 1 + n, d) -> (b, d): CLS for "cls", the mean of the patches for "mean"."""
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)


class ViT(nn.Module):
    """Encoder of images (b, c, h, w) of any size that the patch divides, H ≠ W too, into tokens.

    `image_size` is the native size, for which `pos_embed` (1, 1 + n, d) is stored; other sizes
    resample it by the convention `pos_interp` (`ssl_core.patches.interpolate_positions`).
    `positions` is "sincos" (fixed, not trained) or "learned". `registers` tokens without a position
    stand between CLS and the patches inside, and are no part of any output.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4,
        layer_norm_eps: float = 1e-6,
        positions: str = "learned",
        pos_interp: PosInterp = "size",
        drop_path: float = 0,
        layer_scale: float | None = None,
        mlp: type[nn.Module] = Mlp,
        registers: int = 0,
    ) -> None:
        super().__init__()
        h, w = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.grid = grid_of(torch.empty(0, 1, h, w), patch_size)
        self.dim, self.in_channels = dim, in_channels
        self.pos_interp: PosInterp = pos_interp
        self.patch_embed = PatchEmbed(patch_size=patch_size, in_channels=in_channels, dim=dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if positions == "sincos":
            self.pos_embed = nn.Parameter(sincos_positions(self.grid, dim), requires_grad=False)
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        self.prefix = 1 + registers
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        sizes = {"dim": dim, "heads": heads, "mlp_ratio": mlp_ratio, "layer_norm_eps": layer_norm_eps}
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]  # rising linearly from the first block
        self.blocks = nn.ModuleList(Block(**sizes, drop_path=rate, layer_scale=layer_scale, mlp=mlp) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)

    @classmethod
    def of(cls, config: Any, **options: Any) -> Self:
        """The ViT of a `ViTConfig`, or of any config with its fields; `options` are the other
        arguments."""
        names = ("patch_size", "in_channels", "dim", "depth", "heads", "mlp_ratio", "layer_norm_eps", "pos_interp")
        return cls(image_size=config.size, **{name: getattr(config, name) for name in names}, **options)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens before the first block, (b, prefix + n, d), or (b, prefix + k, d) for the patches
        `keep` (b, k).

        The prefix is CLS and the registers.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must be (b, {self.in_channels}, h, w), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images must be normalised floats, got {images.dtype}")
        b = images.shape[0]
        pos = interpolate_positions(self.pos_embed, self.grid, self.grid_of(images), self.pos_interp)
        prefix = [(self.cls_token + pos[:, :1]).expand(b, -1, -1)]
        if self.register_tokens is not None:
            prefix.append(self.register_tokens.expand(b, -1, -1))
        pos = pos[:, 1:]
        if keep is not None:
            pos = take_tokens(pos.expand(b, -1, -1), keep)
        return torch.cat([*prefix, self.patch_embed(images, keep) + pos], 1)

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens after the last block, CLS first, not normalised, (b, 1 + n, d); what fine-tuning
        pools."""
        x = self.embed(images, keep)
        for block in self.blocks:
            x = block(x)
        return x if self.prefix == 1 else torch.cat([x[:, :1], x[:, self.prefix :]], 1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised tokens (b, 1 + n, d). With `keep` (b, k) only these patches are seen at all:
        (b, 1 + k, d)."""
        return self.norm(self.tokens(images, keep))

    def patch_features(self, images: Tensor) -> Tensor:
        """Normalised patch tokens on their grid, (b, h, w, d)."""
        h, _ = self.grid_of(images)
        tokens = self.norm(self.tokens(images))
        return rearrange(tokens[:, 1:], "b (h w) d -> b h w d", h=h)

    def attention_maps(self, images: Tensor, block: int = -1) -> Tensor:
        """How much CLS attends to each patch in one block, per head, (b, heads, h, w); with what it
        gives to itself and to the registers they sum to 1."""
        h, _ = self.grid_of(images)
        of_cls = self.attention_matrix(images, block, queries=1)  # b heads 1 prefix+n
        return rearrange(of_cls[..., self.prefix :], "b heads 1 (h w) -> b heads h w", h=h)

    def attention_matrix(self, images: Tensor, block: int = -1, queries: int | None = None) -> Tensor:
        """Softmax matrix of one block, (b, heads, prefix + n, prefix + n), whatever kernel training
        uses.

        With `queries` only the rows of as many first tokens, which takes that share of the memory.
        """
        x = self.embed(images)
        chosen = range(len(self.blocks))[block]
        for layer in self.blocks[:chosen]:
            x = layer(x)
        last = self.blocks[chosen]
        assert isinstance(last, Block)
        return last.attn.weights(last.norm1(x), queries)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in `images`; ValueError when the patch does not divide
        them."""
        return grid_of(images, self.patch_embed.patch_size)
