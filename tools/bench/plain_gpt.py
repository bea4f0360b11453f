"""GPT-2 as in a short training script: one module, all logits, random windows, torch's AdamW.

The peer of `gpt_step` and of `tools/learns.py`. Its parameters have our names, so both can start
from the same weights; `turned` transposes the matrices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lm.config import GPTConfig


def turned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights for `PlainGPT`, or its weights for ours: transposes the matrices of the blocks.

    Ours are (in, out), as in transformers; those of `PlainGPT` are (out, in).
    """
    return {name: t.T.contiguous() if ".h." in name and t.ndim == 2 else t for name, t in state.items()}


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (
            part.view(b, n, self.heads, d // self.heads).transpose(1, 2) for part in self.c_attn(x).split(d, dim=2)
        )
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(x.transpose(1, 2).contiguous().view(b, n, d))


class PlainMLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class PlainBlock(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(config.dim, eps=config.layer_norm_eps) for _ in range(2))
        self.attn, self.mlp = PlainAttention(config.dim, config.heads), PlainMLP(config.dim, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PlainGPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.dim),
                "wpe": nn.Embedding(config.context, config.dim),
                "h": nn.ModuleList(PlainBlock(config) for _ in range(config.depth)),
                "ln_f": nn.LayerNorm(config.dim, eps=config.layer_norm_eps),
            }
        )
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.depth) if "c_proj" in name else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        """Loss of tokens (b, t + 1)."""
        logits = self.logits(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def logits(self, tokens: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:  # type: ignore[union-attr]
            x = block(x)
        return F.linear(parts["ln_f"](x), parts["wte"].weight)  # type: ignore[arg-type]


def train(config: GPTConfig, stream: Tensor, steps: int, seed: int) -> PlainGPT:
    """A model after `steps` of AdamW on random windows of the stream (n,), with our schedule."""
    torch.manual_seed(seed)
    model = PlainGPT(config)
    decayed, plain = ([p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    warmup = round(config.warmup_epochs / config.epochs * steps)
    for step in range(steps):
        share = (step - warmup) / max(1, steps - warmup)
        cosine = config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (step + 1) / warmup if step < warmup else cosine
        starts = torch.randint(len(stream) - config.context - 1, (config.batch_size,))
        loss = model(torch.stack([stream[s : s + config.context + 1] for s in starts.tolist()]))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()
