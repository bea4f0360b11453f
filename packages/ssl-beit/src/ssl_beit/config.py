"""Configurations of the image tokenizer and of BEiT, and their presets. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, MultipleOf

from ssl_core.bounds import Count, NonNegative, Positive, Rate, Scale, Share, Width
from ssl_core.config import VIT_SIZES, ImageConfig, PosInterp, TrainConfig, ViTConfig, check, patch_for
from ssl_core.method import Recipe

RECIPES = {
    "beit": Recipe(
        name="beit",
        package="ssl_beit",
        config="ssl_beit.config:BEiTConfig",
        method="ssl_beit.beit:BEiT",
        views="ssl_beit.views:build_beit",
        show="ssl_beit.show:show_beit",
        fitted="ssl_beit.config:fitted",
        prepare="ssl_beit.prepare:prepare",
        measure="ssl_beit.measure:measure_beit",
    ),
    "dvae": Recipe(
        name="dvae",
        package="ssl_beit",
        config="ssl_beit.config:DVAEConfig",
        method="ssl_beit.dvae:DVAE",
        views="ssl_beit.views:build_dvae",
        show="ssl_beit.show:show_dvae",
        fitted="ssl_beit.config:dvae_fitted",
        measure="ssl_beit.measure:measure_dvae",
    ),
}

STRIDE = 8
"""Pixels of a visual token's side: the tokenizer halves an image three times."""

UPDATES = 3_000_000
"""Optimiser steps of DALL-E's tokenizer, by which its schedules are given (appendix A.2)."""

Blocks = Annotated[int, Interval(ge=1, le=100)]


@dataclass(frozen=True, kw_only=True)
class DVAEConfig(ImageConfig, TrainConfig):
    """Tokenizer and recipe. The defaults are DALL-E's (arXiv 2102.12092, section 2.1, appendix A).

    Floating-point images are pixels in [0, 1]: the mean is 0 and the standard deviation 1.
    """

    hidden: Annotated[int, Interval(ge=4, lt=2**14), MultipleOf(4)] = 256
    """channels of the first group; the others have 2, 4 and 8 times as many"""
    blocks: Blocks = 2
    """residual blocks per group"""
    decoder_init: Width = 128
    """width of a visual token's embedding in the decoder"""
    vocab: Annotated[int, Interval(ge=2, lt=2**20)] = 8192
    """visual tokens"""
    kl_weight: NonNegative = 6.6
    """weight of the KL term once it is warm"""
    kl_warmup: Share = 5_000 / UPDATES
    """share of the run in which that weight rises from 0, by half a cosine"""
    temperature: Positive = 1 / 16
    """temperature of the Gumbel-softmax once it is cold; it begins at 1"""
    temperature_decay: Share = 150_000 / UPDATES
    """share of the run in which the temperature falls, by half a cosine"""
    ema: Rate = 0.999
    """momentum of the averaged weights, which tokenize, decode and are published"""

    crop_scale: Scale = (0.08, 1.0)
    """share of the image's area in a random crop; BEiT's, whose crops it will tokenize"""
    flip: bool = True
    """mirror at random"""
    turn: bool = False
    """turn and mirror a view in all ways that leave its shape, for pictures from above"""

    image_size: int | tuple[int, int] = 256
    patch_size: int = STRIDE
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop_pct: float = 1.0
    pos_interp: PosInterp = "size"
    """unused, as this network has no positions; kept because stored configs name it"""
    epochs: float = 6
    batch_size: int = 512
    base_lr: float = 5e-5
    min_lr: float = 1.25e-6
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.patch_size == STRIDE, "patch_size", self.patch_size, f"the tokenizer's stride is {STRIDE}")
        check(set(self.mean) == {0.0}, "mean", self.mean, "must be 0: the tokenizer maps pixels itself")
        check(set(self.std) == {1.0}, "std", self.std, "must be 1: the tokenizer maps pixels itself")


@dataclass(frozen=True, kw_only=True)
class BEiTConfig(ViTConfig, TrainConfig):
    """Encoder, masks, tokenizer and recipe. The defaults are BEiT-B/16's on ImageNet-1k.

    BEiT is arXiv 2106.08254.
    """

    dim: int = 768
    heads: int = 12
    layer_scale: Positive = 0.1
    """initial factor of every residual branch: 0.1 for base, 1e-5 for large"""
    drop_path: Rate = 0.1
    """rate of dropped residual branches in the last block, rising from 0 in the first"""
    shared_bias: bool = True
    """one table of relative positions for all blocks; fine-tuned models have one each"""
    final_norm: Literal["tokens", "pooled"] = "tokens"
    """what the last LayerNorm sees: every token, or the mean of the patches (fine-tuned models)"""
    pool: Literal["cls", "mean"] = "mean"

    vocab: Annotated[int, Interval(ge=0, lt=2**20)] = 8192
    """visual tokens; 0 for an encoder alone, without head and mask token"""
    mask_patches: Count = 75
    """most patches that a mask covers"""
    mask_block: Count = 16
    """patches of a mask's smallest block"""

    tokenizer: str | None = "dalle"
    """folder, Hub id or DALL-E's pickles of a trained tokenizer; the name of one of its presets
    trains it first; none for the one that --init brings"""
    tokenizer_hidden: Annotated[int, Interval(ge=0, lt=2**14), MultipleOf(4)] = 256
    """`hidden` of the tokenizer; 0 for weights without one"""
    tokenizer_blocks: Blocks = 2
    """`blocks` of the tokenizer"""
    tokenizer_init: Width = 128
    """`decoder_init` of the tokenizer"""

    crop_scale: Scale = (0.08, 1.0)
    """share of the image's area in a random crop"""
    flip: bool = True
    """mirror at random"""
    turn: bool = False
    """turn and mirror a view in all ways that leave its shape, for pictures from above"""
    jitter: NonNegative = 0.4
    """strength of the change of brightness, contrast and saturation"""

    epochs: float = 800
    batch_size: int = 2048
    base_lr: float = 1.5e-3 / 8
    min_lr: float = 1e-5
    warmup_epochs: float = 10
    weight_decay: float = 0.05
    clip_grad: float | None = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Hidden patches are predicted from normalised tokens, and a mask fits in the grid.
        if self.vocab:
            check(self.final_norm == "tokens", "final_norm", self.final_norm, "is for an encoder alone, vocab = 0")
            check(self.vocab > 1, "vocab", self.vocab, "must be 0 or at least 2")
            blocks = "a block mask needs two rows and columns of patches"
            check(min(self.grid) > 1, "image_size", self.image_size, blocks)
            for name in ("mask_patches", "mask_block"):
                most = f"must be at most {self.patches}, the number of patches"
                check(getattr(self, name) <= self.patches, name, getattr(self, name), most)
        if self.tokenizer_hidden:
            check(self.vocab > 0, "vocab", self.vocab, "a tokenizer needs visual tokens")

    @property
    def tokenizer_size(self) -> tuple[int, int]:
        """Height and width of the view that the tokenizer reads: one token for each patch."""
        return self.grid[0] * STRIDE, self.grid[1] * STRIDE


def dalle() -> DVAEConfig:
    """DALL-E's tokenizer, 98 M parameters: 3 M updates of 512 pictures on 64 V100 (appendix A.2).

    The paper has 250 M pictures, so that is 6 epochs of them; on fewer pictures raise the epochs.
    Not run here.
    """
    return DVAEConfig()


def small() -> DVAEConfig:
    """The smallest that DALL-E's code admits: 64 channels, 512 tokens. A start for one GPU.

    Not run here.
    """
    schedules: Any = {"kl_warmup": 0.05, "temperature_decay": 0.5, "ema": 0.99}
    return DVAEConfig(image_size=64, hidden=64, vocab=512, **schedules, epochs=20, batch_size=256, base_lr=5e-4)


def demo_dvae() -> DVAEConfig:
    """The built-in scenes at 32 pixels in five minutes of a CPU core.

    It uses 64 % of its vocabulary (docs/benchmarks.md).
    """
    network: Any = {"hidden": 16, "blocks": 1, "decoder_init": 64, "vocab": 256}
    schedules: Any = {"kl_warmup": 0.1, "temperature_decay": 0.9, "ema": 0.98}
    run: Any = {"epochs": 12, "batch_size": 64, "base_lr": 8e-3, "min_lr": 1e-5, "precision": "fp32"}
    return DVAEConfig(image_size=32, **network, crop_scale=(0.5, 1.0), **schedules, **run)


def vit_base() -> BEiTConfig:
    """BEiT-B/16, 800 epochs of ImageNet-1k at batch 2048 (about five days on 16 V100).

    Fine-tuned 83.2 % at 224 pixels (the paper's abstract), 83.7 % after ImageNet-22k (the authors'
    README). Not run here.
    """
    return BEiTConfig()


def vit_large() -> BEiTConfig:
    """BEiT-L/16: fine-tuned 86.0 % after ImageNet-22k (the authors' README). Not run here."""
    return BEiTConfig(dim=1024, depth=24, heads=16, layer_scale=1e-5)


def vit_base_22k() -> BEiTConfig:
    """BEiT-B/16 on ImageNet-22k: 150 epochs, mean and standard deviation 0.5; `…-pt22k` on the Hub.

    Not run here.
    """
    return BEiTConfig(epochs=150, warmup_epochs=1.4, mean=(0.5,) * 3, std=(0.5,) * 3)


def vit_small() -> BEiTConfig:
    """ViT-S/16 at 128 pixels over the small tokenizer: not in the paper; a start for one GPU.

    Not run here.
    """
    masks: Any = {"vocab": 512, "mask_patches": 25, "mask_block": 6}
    tokenizer: Any = {"tokenizer": "small", "tokenizer_hidden": 64}
    run: Any = {"epochs": 300, "batch_size": 512, "base_lr": 5e-4}
    return BEiTConfig(image_size=128, dim=384, heads=6, **masks, **tokenizer, **run)


def demo() -> BEiTConfig:
    """The built-in scenes at 32 pixels in ten minutes of a CPU core, tokenizer included.

    See docs/benchmarks.md for the figures.
    """
    images: Any = {"image_size": 32, "patch_size": 8, "crop_scale": (0.5, 1.0), "jitter": 0.0, "crop_pct": 1.0}
    encoder: Any = {"dim": 128, "depth": 4, "heads": 4, "drop_path": 0.0}
    masks: Any = {"vocab": 256, "mask_patches": 7, "mask_block": 2}
    tokenizer: Any = {"tokenizer": "demo", "tokenizer_hidden": 16, "tokenizer_blocks": 1, "tokenizer_init": 64}
    run: Any = {"epochs": 30, "batch_size": 64, "base_lr": 8e-3, "warmup_epochs": 2, "precision": "fp32"}
    return BEiTConfig(**images, **encoder, **masks, **tokenizer, **run)


def dvae_fitted(network: str, side: int, samples: int) -> DVAEConfig:
    """A tokenizer for `samples` images of `side` pixels: the demo's, the small one or DALL-E's."""
    preset = {"tiny": demo_dvae, "small": small, "base": dalle}[network]()
    base_lr = {"tiny": 4e-3, "small": 5e-4, "base": 1e-4}[network]
    run: Any = {"crop_scale": (0.2, 1.0), "epochs": 400, "batch_size": 512, "precision": "auto"}
    return dataclasses.replace(preset, image_size=side, base_lr=base_lr, **run)


def fitted(network: str, side: int, samples: int) -> BEiTConfig:
    """A recipe for `samples` images of `side` pixels, by a ViT that is tiny, small or base.

    A tokenizer of its own is trained first. As in the paper, four patches in ten are hidden.
    """
    patch = patch_for(side)
    patches = (side // patch) ** 2
    masks: Any = {"mask_patches": max(2, round(0.4 * patches)), "mask_block": max(1, round(0.08 * patches))}
    tokenizer: Any = {
        "tiny": {
            "vocab": 256,
            "tokenizer": "demo",
            "tokenizer_hidden": 16,
            "tokenizer_blocks": 1,
            "tokenizer_init": 64,
        },
        "small": {"vocab": 512, "tokenizer": "small", "tokenizer_hidden": 64},
        "base": {"vocab": 8192, "tokenizer": "dalle"},
    }[network]
    base_lr = {"tiny": 2e-3, "small": 1e-3, "base": 6e-4}[network]
    run: Any = {"base_lr": base_lr, "crop_scale": (0.2, 1.0), "drop_path": 0.0 if network == "tiny" else 0.1}
    return BEiTConfig(image_size=side, patch_size=patch, **VIT_SIZES[network], **masks, **tokenizer, **run)


PRESETS: dict[str, dict[str, Callable[[], Any]]] = {
    "beit": {
        "demo": demo,
        "vit_small": vit_small,
        "vit_base": vit_base,
        "vit_base_22k": vit_base_22k,
        "vit_large": vit_large,
    },
    "dvae": {"demo": demo_dvae, "small": small, "dalle": dalle},
}
