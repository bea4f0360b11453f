"""GPT-2: Language Models are Unsupervised Multitask Learners (Radford et al. 2019).

It follows GPT (2018) and the transformer (arXiv 1706.03762).

A causal transformer predicts every token of a text from those before it.

    L = −1/t · Σ_i log p(x_{i+1} | x_1 … x_i)
    h = wte[x] + wpe[position]
    per block   h += attn(ln_1(h)),  h += mlp(ln_2(h))
    logits = ln_f(h) · wteᵀ

Token i looks at tokens 1 … i only: without that mask the task is to copy. The head is the
embedding. Matrices and embeddings start from N(0, 0.02²), those that write into the residual stream
(attn.c_proj, mlp.c_proj) from N(0, 0.02²/2L), biases at 0 (section 2.3). GELU is the tanh
approximation, as in the released weights.

Deviations from the released code: training builds no logits (`loss.py`, which has the equation and
its fast form). Texts are packed one behind the other, an eos token after each, and attention
crosses it, as in the paper. The recipe is nanoGPT's, whose warm-up is one step ahead of ours: our
first step has a rate of 0.

Expected (the paper's table 3): WikiText-103 perplexity 37.50 / 26.37 / 22.05 / 17.48 for 124 M /
355 M / 774 M / 1.5 B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_core.config import ConfigError
from ssl_lm.attention import Cache, attend, attention_weights, causal_mask
from ssl_lm.config import GPTConfig
from ssl_lm.loss import linear_cross_entropy, linear_nll
from ssl_lm.sampling import check_sampling, choose
from ssl_lm.text_model import TextModel, init_weights, text_mean
from ssl_lm.tokenizer import settled


class Linear(nn.Linear):
    """x W + b with W (in, out), where torch's own Linear has (out, in).

    GPT-2's files hold (in, out), so loading transposes nothing. Writing multiplies W by a single
    row at every step: on a CPU this layout takes up to 40 % less time for it (docs/benchmarks.md).
    `addmm` also leaves the gradient of W contiguous, which the fused optimisers would otherwise
    copy.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.c_attn = Linear(config.dim, 3 * config.dim)
        self.c_proj = Linear(config.dim, config.dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, h, n, d) of x (b, n, h·d)."""
        q, k, v = rearrange(self.c_attn(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return q, k, v

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        q, k, v = self.split(x)  # b h n d
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # b h m d: the earlier tokens too
        x = attend(q, k, v, mask, causal=mask is None, dropout=self.dropout if self.training else 0.0)
        return self.c_proj(rearrange(x, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_new" else "none"
        self.c_fc = Linear(config.dim, config.mlp_width)
        self.c_proj = Linear(config.mlp_width, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x), mask, cache, layer))
        return x + self.drop(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, config: GPTConfig, vocabulary: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, config.dim)
        self.wpe = nn.Embedding(config.context, config.dim)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.ln_f = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = self.drop(self.wte(input_ids) + self.wpe(positions))  # b n d
        for layer, block in enumerate(self.h):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return self.ln_f(x)


class GPT(TextModel):
    """`GPT(config)`, or `GPT.from_pretrained("gpt2")`."""

    config_class = GPTConfig
    layout = "ssl_lm.convert:LAYOUTS[gpt]"
    config: GPTConfig
    accumulates = True  # every row has as many targets, the context's tokens

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, settled(config))
        self.apply(init_weights)
        # two sums per block go into the residual stream: scaled so, its variance does not grow with
        # the depth
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(weight, std=0.02 * (2 * config.depth) ** -0.5)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """{"loss"}: mean −log p, in nats, of `batch["input_ids"]` (b, t + 1) after the first
        token."""
        tokens = batch["input_ids"]
        x = self.hidden(tokens[:, :-1])  # b t d
        return {"loss": linear_cross_entropy(x, self.transformer.wte.weight, tokens[:, 1:])}

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Features (b, t, d) after the last norm, for tokens (b, t) that follow those in `cache`.

        `attention_mask` (b, cached + t) is 0 at padding, left or right of the text: no token looks
        at padding, and positions do not count it. Raises ValueError for more tokens than the
        context.
        """
        past, t = cache.length if cache else 0, input_ids.shape[1]
        if past + t > self.config.context:
            raise ValueError(f"{past + t} tokens do not fit into the context of {self.config.context}")
        # without padding, attention needs no mask but the causal one, which it knows itself
        if attention_mask is None:
            positions, mask = torch.arange(past, past + t, device=input_ids.device), None
        else:
            there = attention_mask.bool()  # b m
            positions = (there.cumsum(1) - 1).clamp(min=0)[:, past:]  # b t
            # padding looks at itself: a row of the softmax without any key would be NaN
            keys = torch.arange(past + t, device=there.device)
            own = keys[past:, None] == keys  # t m
            mask = (causal_mask(t, past + t, there.device) & there[:, None] | own)[:, None]  # b 1 t m
        return self.transformer(input_ids, positions, mask, cache)

    def head(self, x: Tensor) -> Tensor:
        """Features (…, d) to logits (…, v). The head is the embedding."""
        return F.linear(x, self.transformer.wte.weight)

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, t, v): of the token after each of input_ids (b, t); `attention_mask` as in
        `hidden`."""
        return self.head(self.hidden(input_ids, attention_mask))

    @torch.inference_mode()
    def nll(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """−log p, in nats, of labels (b, t), each after its input_ids (b, t); 0 if it is -100."""
        x = self.hidden(input_ids)
        return linear_nll(x.flatten(0, 1), self.transformer.wte.weight, labels.flatten()).view_as(labels)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, d): the mean of the last features over the text.

        Without `attention_mask` (b, t), padding is `pad_token_id` or negative and stands right of
        the text.
        """
        # no token looks to its right, so padding there needs no mask
        x = self.hidden(input_ids.clamp(min=0), attention_mask)
        return text_mean(x, self.text_mask(input_ids, attention_mask))

    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """Attention (depth, b, h, t, t) of every block on tokens (b, t)."""
        t = input_ids.shape[1]
        mask, maps = causal_mask(t, t, input_ids.device), []
        x = self.transformer.wte(input_ids) + self.transformer.wpe.weight[:t]
        for layer, block in enumerate(self.transformer.h):
            q, k, _ = block.attn.split(block.ln_1(x))  # type: ignore[operator,union-attr]
            maps.append(attention_weights(q, k, mask))
            x = block(x, None, None, layer)
        return torch.stack(maps)

    # ------------------------------------------------------------ writing

    def generate(self, input_ids: Tensor, max_new_tokens: int, temperature: float = 1.0, **settings: Any) -> Tensor:
        """Continue prompts (b, t) by up to `max_new_tokens` tokens: (b, t + new).

        The settings are those of `stream`. A row that ends before the others is filled up with its
        eos token.
        """
        steps = self.stream(input_ids, max_new_tokens, temperature, **settings)
        return torch.cat([input_ids, *(tokens[:, None] for tokens in steps)], 1)

    @torch.inference_mode()
    def stream(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        *,
        attention_mask: Tensor | None = None,
        seed: int | None = None,
        overflow: Literal["error", "slide"] = "error",
        **sampling: Any,
    ) -> Iterator[Tensor]:
        """Yield the next tokens (b,) of prompts (b, t), step by step.

        It ends when every row has had its eos token. `temperature`, `top_k` and `top_p` are those
        of `ssl_lm.sampling.choose`; `seed` fixes what is drawn. Pad prompts of different lengths on
        the left, with 0 there in `attention_mask` (b, t). If prompt and new tokens exceed the
        context, `overflow="slide"` forgets the older half whenever the context is full. Raises
        ConfigError, at the first step, for settings that cannot be used.
        """
        check_sampling(temperature, **sampling)
        self._check_length(input_ids.shape[1], max_new_tokens, overflow)
        generator = None if seed is None else torch.Generator(input_ids.device).manual_seed(seed)
        context, half, eos = self.config.context, self.config.context // 2, self.config.eos_token_id
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        text, mask = input_ids, attention_mask  # b t
        # earlier tokens have keys and values in the cache: only new ones go through the network
        cache, new = self.cache(len(text), min(text.shape[1] + max_new_tokens, context)), text
        with self.evaluating():
            for _ in range(max_new_tokens):
                if cache.length + new.shape[1] > context:
                    # the newer half gets new positions, so its keys are computed again
                    text, mask = text[:, -half:], None if mask is None else mask[:, -half:]
                    cache, new = self.cache(len(text), context), text
                x = self.hidden(new, mask, cache)[:, -1]  # b d
                token = choose(self.head(x), temperature=temperature, generator=generator, **sampling)  # b
                if eos is not None:
                    token = token.masked_fill(done, eos)
                    done |= token == eos
                yield token
                if done.all():
                    return
                new = token[:, None]
                text = torch.cat([text, new], 1)
                mask = None if mask is None else F.pad(mask, (0, 1), value=1)

    def cache(self, batch: int, room: int) -> Cache:
        """An empty cache for up to `room` tokens of `batch` texts."""
        c = self.config
        return Cache((c.depth, batch, c.heads, room, c.dim // c.heads), self.transformer.wte.weight)

    def _check_length(self, t: int, new: int, overflow: str) -> None:
        context = self.config.context
        if t == 0 or new < 1:
            raise ConfigError("a prompt needs a token, and max_new_tokens must be positive")
        if t > context:
            raise ConfigError(f"the prompt has {t} tokens, more than the context of {context}: shorten it")
        if t + new - 1 > context and overflow == "error":
            what = f"{t} tokens of prompt and {new} new ones exceed the context of {context}: ask for fewer, or give"
            raise ConfigError(f"{what} overflow='slide'")
