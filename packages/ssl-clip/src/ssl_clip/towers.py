"""CLIP's two transformers, image and text: pre-norm blocks under transformers' names.

Table 20 and section 2.4 of the paper (arXiv 2103.00020); OpenAI's code for what it leaves open: no
bias in the patch projection, a LayerNorm before the first block, QuickGELU x·σ(1.702x), a causal
text tower whose end-of-text token is the text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_clip.config import CLIPConfig
from ssl_core.patches import PosInterp, grid_of, interpolate_positions
from ssl_core.vit import attention


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702x), OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`ssl_core.vit.attention` to the token itself and those before it; q, k, v (b, h, n, d)."""
    # On a CPU in bf16 the fused kernel is several times slower than the plain product.
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        n = q.shape[2]
        later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # b h n n
        return scores.masked_fill(later, -torch.inf).softmax(-1, dtype=q.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Attention(nn.Module):
    """Multi-head attention. Files hold q_proj, k_proj and v_proj, into which `qkv` is cut."""

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.attention = heads, causal_attention if causal else attention
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = self.attention(q, k, v)  # b h n d
        return self.out_proj(rearrange(x, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """Two layers with an activation between them."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # b n d -> b n hidden -> b n d


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, dim: int, heads: int, config: CLIPConfig, *, causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.self_attn = Attention(dim, heads, causal=causal)
        self.layer_norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = MLP(dim, round(dim * config.mlp_ratio), config.activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """`depth` blocks of width `dim`, (b, n, d) -> (b, n, d)."""

    def __init__(self, dim: int, depth: int, heads: int, config: CLIPConfig, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, config, causal=causal) for _ in range(depth))
        # OpenAI's rule for the text tower, used for both. The deeper, the less each branch adds.
        # Attention's biases start at 0; an MLP's stay as Linear draws them, uniform in ±1/√fan-in.
        deep = (2 * dim * depth) ** -0.5
        stds = {"self_attn.qkv": dim**-0.5, "self_attn.out_proj": deep, "mlp.fc1": (2 * dim) ** -0.5, "mlp.fc2": deep}
        for layer in self.layers:
            for name, std in stds.items():
                nn.init.normal_(layer.get_parameter(f"{name}.weight"), std=std)
            for part in ("qkv", "out_proj"):
                nn.init.zeros_(layer.get_parameter(f"self_attn.{part}.bias"))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ImageEmbeddings(nn.Module):
    """Patches and a class token, with learned positions, which another image size resamples."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.grid, self.in_channels = config.grid, config.in_channels
        self.pos_interp: PosInterp = config.pos_interp
        p, dim = config.patch_size, config.dim
        self.class_embedding = nn.Parameter(torch.empty(dim))
        self.patch_embedding = nn.Conv2d(config.in_channels, dim, p, stride=p, bias=False)
        self.position_embedding = nn.Embedding(1 + config.patches, dim)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.patch_embedding.weight
        p = weight.shape[-1]
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must be (b, {self.in_channels}, h, w), got {tuple(images.shape)}")
        grid = grid_of(images, p)
        # The convolution as one matrix product, for a patch is its own receptive field.
        x = rearrange(images.to(weight.dtype), "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        x = F.linear(x, weight.flatten(1))  # b n d
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # b 1 d
        pos = interpolate_positions(self.position_embedding.weight[None], self.grid, grid, self.pos_interp)
        return torch.cat([cls, x], 1) + pos  # b 1+n d


class ImageTower(nn.Module):
    """CLIP's ViT: images (b, c, h, w) -> the class token after the last norm (b, d)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = ImageEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.encoder = Encoder(config.dim, config.depth, config.heads, config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        scale = config.dim**-0.5
        nn.init.normal_(self.embeddings.class_embedding, std=scale)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=scale)

    def tokens(self, images: Tensor) -> Tensor:
        """After the last block, (b, 1 + n, d)."""
        return self.encoder(self.pre_layrnorm(self.embeddings(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.post_layernorm(self.tokens(images)[:, 0])  # b d

    def patch_features(self, images: Tensor) -> Tensor:
        """Normalised patch tokens on their grid, (b, h, w, d)."""
        h, _ = grid_of(images, self.embeddings.patch_embedding.weight.shape[-1])
        return rearrange(self.post_layernorm(self.tokens(images)[:, 1:]), "b (h w) d -> b h w d", h=h)


class TextEmbeddings(nn.Module):
    """Tokens with learned positions, (b, t) -> (b, t, d)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.text_dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTower(nn.Module):
    """CLIP's text transformer: token ids (b, t) -> the end token after the last norm (b, d)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.pool, self.eos, self.context_length = config.text_pool, config.eos_token_id, config.context_length
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config.text_dim, config.text_depth, config.text_heads, config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.text_dim, eps=config.layer_norm_eps)
        nn.init.normal_(self.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.context_length or ids.is_floating_point():
            raise ValueError(f"input_ids must be integers (b, up to {self.context_length}), got {tuple(ids.shape)}")
        x = self.final_layer_norm(self.encoder(self.embeddings(ids)))  # b t d
        # The causal tower has read the whole text at its end token. OpenAI's has the largest id.
        end = ids.argmax(1) if self.pool == "argmax" else (ids == self.eos).int().argmax(1)
        return x[torch.arange(x.shape[0], device=x.device), end]  # b d
