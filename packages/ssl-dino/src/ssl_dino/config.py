"""Configuration of DINO and DINOv2, their presets. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, Predicate

from ssl_core.bounds import Jitter, Positive, Scale, Share, Whole, Width, rising
from ssl_core.config import VIT_SIZES, BackboneConfig, PosInterp, TrainConfig, ViTConfig, check, patch_for
from ssl_core.method import Recipe

RECIPES = {
    "dino": Recipe(
        name="dino",
        package="ssl_dino",
        config="ssl_dino.config:DINOConfig",
        method="ssl_dino.dino:DINO",
        views="ssl_dino.views:build",
        show="ssl_dino.show:show",
        fitted="ssl_dino.config:fitted",
    ),
    "dinov2": Recipe(
        name="dinov2",
        package="ssl_dino",
        config="ssl_dino.config:DINOv2Config",
        method="ssl_dino.dinov2:DINOv2",
        views="",
        show="ssl_dino.show:show",
    ),
}
BLUR_P: dict[str, tuple[float, float, float]] = {"paper": (1.0, 0.1, 0.5), "released": (0.0, 0.9, 0.5)}
"""Probability of a blur in the first global crop, the other global crops and the local ones: as the
papers of DINO and DINOv2 say, and as DINOv2's released code does it, where `RandomApply(p=1 - p)`
turns the first two around."""


@dataclass(frozen=True, kw_only=True)
class DINOConfig(BackboneConfig, TrainConfig):
    """Backbone, head, crops and recipe of DINO (arXiv 2104.14294).

    The defaults are the authors' 100 epochs of ViT-S/16.
    """

    pos_interp: PosInterp = "offset"
    """how stored positions are resampled to another image size, local crops too"""
    drop_path: float = 0.1
    """vit: share of samples that skip the student's last block, rising linearly from the first"""

    prototypes: Annotated[int, Interval(ge=2, le=2**24)] = 65536
    """k, the head's outputs"""
    head_hidden: Width = 2048
    """width of the head's MLP"""
    bottleneck: Width = 256
    """width of what the last layer reads, L2-normalised"""
    head_layers: Annotated[int, Interval(ge=2, le=100)] = 3
    """Linears of the head's MLP"""
    head_bn: bool = False
    """batch norm in the head"""
    norm_last_layer: bool = True
    """keep the prototypes at length 1; False suits a ViT-S better, but can be unstable"""

    student_temp: Positive = 0.1
    """τ_s"""
    teacher_temp: Positive = 0.04
    """τ_t after its warm-up; 0.07 is better over 300 epochs and more"""
    warmup_teacher_temp: Positive = 0.04
    """τ_t of the first epoch"""
    warmup_teacher_temp_epochs: Whole = 0
    """epochs over which τ_t rises"""
    center_momentum: Share = 0.9
    """how slowly the centre follows the batch"""
    teacher_momentum: Share = 0.996
    """λ of the first step, to 1 by a cosine; 0.9995 with batches of 256"""
    freeze_last_layer: Whole = 1
    """epochs in which the last layer does not move"""
    head_warmup_epochs: Whole = 1
    """epochs in which only the heads move, when --init gives a backbone without heads"""

    global_crops: Annotated[int, Interval(ge=1, le=1000)] = 2
    """large crops, which teacher and student see"""
    global_scale: Scale = (0.4, 1.0)
    """share of the image's area in them"""
    local_crops: Annotated[int, Interval(ge=0, le=1000)] = 8
    """small crops, which only the student sees"""
    local_size: Width = 96
    """pixels of their sides"""
    local_scale: Scale = (0.05, 0.4)
    """share of the image's area in them"""
    flip: bool = True
    """mirror crops at random"""
    turn: bool = False
    """turn and mirror a crop in all ways that leave its shape, for pictures from above"""
    jitter: Jitter = (0.4, 0.4, 0.2, 0.1)
    """strength of brightness, contrast, saturation, hue; the last two only where images are RGB"""
    jitter_p: Share = 0.8
    """probability of colour jitter"""
    grayscale_p: Share = 0.2
    """probability of grey, where images are RGB"""
    blur_p: Literal["paper", "released"] | tuple[Share, Share, Share] = "paper"
    """of the first global crop, the other ones, the local ones: paper 1 .1 .5, released 0 .9 .5"""
    solarize_p: Share = 0.2
    """probability of solarizing in every global crop but the first"""
    gamma: Annotated[tuple[Positive, Positive], Predicate(rising)] | None = None
    """range of the exponent of every pixel, in [0, 1]"""
    noise: Share = 0.0
    """largest standard deviation of noise, as a share of the range"""
    band_drop_p: Share = 0.0
    """share of bands set to 0; one is always left"""
    stain: Share = 0.0
    """largest change of the density of the stains of a tissue; needs RGB"""

    epochs: float = 100
    batch_size: int = 1024
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float | None = 0.4
    clip_each: Positive | None = 3.0
    """largest norm of each tensor's gradient, as the authors clip; clip_grad clips the whole"""

    def __post_init__(self) -> None:
        super().__post_init__()
        crops = "a teacher's crop needs another one of the student: two global crops, or a local one"
        check(self.global_crops + self.local_crops > 1, "global_crops", self.global_crops, crops)
        whole = self.local_size % self.stride == 0
        check(whole, "local_size", self.local_size, f"must be divisible by the patch size {self.patch_size}")

    @property
    def blurs(self) -> tuple[float, float, float]:
        """Probability of a blur in the first global crop, the other ones, the local crops."""
        return BLUR_P[self.blur_p] if isinstance(self.blur_p, str) else self.blur_p


@dataclass(frozen=True, kw_only=True)
class DINOv2Config(ViTConfig):
    """The encoder of DINOv2 (arXiv 2304.07193), with registers or without; by default ViT-S/14."""

    image_size: int | tuple[int, int] = 518
    patch_size: int = 14
    pos_interp: PosInterp = "offset"
    """how stored positions are resampled: offset (authors), antialias (with registers), size"""
    mlp_ratio: int = 4
    """hidden width of an MLP over the width, before SwiGLU's two thirds"""
    swiglu: bool = False
    """gated MLPs, as in ViT-g"""
    registers: Annotated[int, Interval(ge=0, le=1000)] = 0
    """tokens without a position; 4 in the models that have them (arXiv 2309.16588)"""


def vit_small() -> DINOConfig:
    """ViT-S/16, the authors' default run: 100 epochs of ImageNet at batch 1024, 2 x 224 + 8 x 96
    pixels.

    k-NN 69.3 %, linear probe 74.0 % after 1.75 days on 8 GPUs (the authors' README). Not run here.
    """
    return DINOConfig()


def vit_small_300() -> DINOConfig:
    """ViT-S/16 for 300 epochs with τ_t to 0.07 and prototypes of any length: k-NN 73.3 %, linear
    76.0 % after 2.6 days on 16 GPUs (the authors' README). Not run here."""
    return DINOConfig(epochs=300, teacher_temp=0.07, warmup_teacher_temp_epochs=30, norm_last_layer=False)


def vit_base() -> DINOConfig:
    """ViT-B/16 by the recipe of vit_small_300, its prototypes of length 1: the authors' longer run
    reaches k-NN 76.1 %, linear 78.2 % (their README). Not run here."""
    return DINOConfig(dim=768, depth=12, heads=12, epochs=300, teacher_temp=0.07, warmup_teacher_temp_epochs=30)


def resnet50() -> DINOConfig:
    """ResNet-50 for 100 epochs, by SGD and with smaller crops, as the authors' README advises for
    convnets.

    No figure is given for this run; k-NN 67.5 %, linear 75.3 % in their table are of a longer one.
    Not run here.
    """
    sgd: Any = {"optimizer": "sgd", "base_lr": 0.03, "weight_decay": 1e-4, "weight_decay_end": None}
    return DINOConfig(backbone="resnet50", **sgd, global_scale=(0.14, 1.0), local_scale=(0.05, 0.14))


def small_data() -> DINOConfig:
    """ViT-S/16 on one device at batch 256: 4,096 prototypes, 2 + 4 crops, a slow teacher. Not in
    the paper, not run here."""
    teacher: Any = {"teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30, "teacher_momentum": 0.9995}
    return DINOConfig(**teacher, batch_size=256, prototypes=4096, local_crops=4, epochs=300)


def demo() -> DINOConfig:
    """The built-in scenes at 32 pixels in some 25 minutes of a CPU core; the figures stand in
    docs/benchmarks.md.

    AdamW: with SGD some seeds stay where one prototype takes all images or none does.
    """
    network: Any = {"backbone": "resnet18", "width": 12, "small_stem": True, "image_size": 32, "crop_pct": 1.0}
    head: Any = {"prototypes": 64, "head_hidden": 256, "bottleneck": 64, "head_bn": True, "freeze_last_layer": 0}
    teacher = {"teacher_temp": 0.02, "warmup_teacher_temp": 0.02, "teacher_momentum": 0.98}
    crops: Any = {"global_scale": (0.5, 1.0), "local_crops": 0, "local_size": 16}
    colours: Any = {"jitter": (0.4, 0.4, 0.2, 0.02), "blur_p": (0.3, 0.3, 0.3), "solarize_p": 0.0}
    optimizer: Any = {"base_lr": 4e-3, "min_lr": 0.0, "weight_decay": 0.05, "weight_decay_end": None, "clip_each": None}
    run: Any = {"epochs": 20, "warmup_epochs": 1, "batch_size": 128, "precision": "fp32"}
    return DINOConfig(**network, **head, **teacher, **crops, **colours, **optimizer, **run)


def fitted(network: str, side: int, samples: int) -> DINOConfig:
    """A recipe for `samples` images of `side` pixels, by a ViT that is tiny, small or base.

    There is about a prototype to eight images, as far as the paper's 65,536.
    """
    patch = patch_for(side)
    prototypes = min(65536, max(64, 1 << (max(1, samples // 8).bit_length() - 1)))
    local: Any = {"local_crops": 8 if network == "base" else 4, "local_size": side // 2 // patch * patch}
    head: Any = {} if network == "base" else {"head_hidden": 512, "bottleneck": 128}
    optimizer: Any = {"base_lr": 1e-3, "clip_each": 3.0, "drop_path": 0.0 if network == "tiny" else 0.1}
    images: Any = {"image_size": side, "patch_size": patch, "prototypes": prototypes}
    teacher: Any = {"teacher_momentum": 0.996, "norm_last_layer": True}
    return DINOConfig(**images, **VIT_SIZES[network], **local, **head, **teacher, **optimizer, epochs=800)


def vits14() -> DINOv2Config:
    """ViT-S/14: k-NN 79.0 %, linear 81.1 % on ImageNet (the authors' README)."""
    return DINOv2Config()


def vitb14() -> DINOv2Config:
    """ViT-B/14: k-NN 82.1 %, linear 84.5 % (the authors' README)."""
    return DINOv2Config(dim=768, depth=12, heads=12)


def vitl14() -> DINOv2Config:
    """ViT-L/14: k-NN 83.5 %, linear 86.3 % (the authors' README)."""
    return DINOv2Config(dim=1024, depth=24, heads=16)


def vitg14() -> DINOv2Config:
    """ViT-g/14: k-NN 83.5 %, linear 86.5 % (the authors' README)."""
    return DINOv2Config(dim=1536, depth=40, heads=24, swiglu=True)


PRESETS: dict[str, dict[str, Callable[[], Any]]] = {
    "dino": {
        "demo": demo,
        "small_data": small_data,
        "vit_small": vit_small,
        "vit_small_300": vit_small_300,
        "vit_base": vit_base,
        "resnet50": resnet50,
    },
    "dinov2": {"demo": vits14, "vits14": vits14, "vitb14": vitb14, "vitl14": vitl14, "vitg14": vitg14},
}
