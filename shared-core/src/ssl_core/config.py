"""Configurations are frozen dataclasses: what determines a run's result, and how it is run.

A field's type states its bounds (`ssl_core.bounds`); `__post_init__` has the rules between fields.
A dataclass goes to JSON and back by `to_dict` and `from_dict`; reading is strict: an unknown key, a
wrong type and a value out of range are errors that name the field. This file imports no torch, so
that `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Interval

from ssl_core.bounds import Checked, Count, Depth, NonNegative, Portion, Positive, Rate, Whole, Width, field_hints, read
from ssl_core.errors import ConfigError

C = TypeVar("C")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Optimizer = Literal["adamw", "sgd", "lars", "adafactor"]
PosInterp = Literal["offset", "size", "antialias"]


@dataclass(frozen=True)
class Format:
    """What one format of the published folders changed in the fields of one config class.

    The class states `FORMATS: ClassVar = {2: Format(added={"registers": 0})}`; a number counts for
    the whole package, and 1 is what its first release wrote. An entry never changes after its
    release: later formats have entries of their own. `ssl_core.hub.format` reads them.
    """

    added: Mapping[str, Any] = field(default_factory=dict)
    """names that are new in this format, those of renamed fields too, and the value (as JSON has
    it) with which the method is what it was before"""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """name until now → new name"""
    breaks: bool = False
    """whether earlier versions must refuse the folders of this one, whatever the fields say"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """What the training loop needs; a method's config adds its fields and its paper's values."""

    epochs: Positive = 100
    """passes over the data"""
    batch_size: Count = 256
    """samples per optimiser step, over all processes and micro-batches"""
    base_lr: Positive = 1e-3
    """learning rate at batch 256: lr = base_lr · batch_size / 256"""
    min_lr: NonNegative = 0.0
    """learning rate at the end of the cosine; a peak below it is held"""
    warmup_epochs: NonNegative = 0.0
    """epochs of linear warm-up from 0"""
    weight_decay: NonNegative = 0.05
    """decay of matrices; biases and other 1-D tensors only where the method's paper decays them"""
    weight_decay_end: Positive | None = None
    """weight decay at the end of a cosine over the run; constant without"""
    optimizer: Optimizer = "adamw"
    """adamw has `betas`, sgd and lars `momentum`; adafactor's rate is a share of a tensor's size"""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """AdamW's momenta"""
    eps: Positive = 1e-8
    """AdamW's epsilon"""
    momentum: Rate = 0.9
    """SGD's and LARS's momentum"""
    clip_grad: Positive | None = None
    """largest norm of the whole gradient"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto asks the hardware; the resolved value is stored"""
    seed: Whole = 0
    """seed of initialisation, order, augmentation and masks"""

    def __post_init__(self) -> None:
        super().__post_init__()
        run = f"must be shorter than the run of {self.epochs:g} epochs"
        check(self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, run)
        end = self.weight_decay_end
        check(end is None or self.weight_decay > 0, "weight_decay_end", end, "weight_decay must be positive too")

    @property
    def lr(self) -> float:
        """Peak learning rate by the linear scaling rule."""
        return self.base_lr * self.batch_size / 256


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Checked):
    """What the images look like to a method whose encoder cuts them into patches."""

    image_size: Count | tuple[Count, Count] = 224
    """pixels of a side, or height and width"""
    patch_size: Count = 16
    """pixels of a patch's side"""
    in_channels: Width = 3
    """channels of an image: 1 grey, 3 RGB, or as many bands as the files have"""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """pixel mean per channel, of values in [0, 1]"""
    std: tuple[Positive, ...] = IMAGENET_STD
    """pixel standard deviation per channel"""
    crop_pct: Portion = 0.875
    """share of the shorter side that an evaluation's centre crop keeps"""
    max_pixels: Count = 89_478_485
    """images of more pixels are left out: a small file can hold more than the memory does"""
    exact_decode: bool = False
    """decode photographs whole for training too; else only as far as a view needs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(side % self.stride == 0 for side in self.size)
        check(whole, "image_size", self.image_size, f"must be divisible by the patch size {self.patch_size}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            one_each = f"needs one value per channel, {self.in_channels} in all"
            check(len(values) == self.in_channels, name, values, one_each)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def stride(self) -> int:
        """What the sides of an image have to be divisible by."""
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ImageConfig):
    """A vision transformer (arXiv 2010.11929). The defaults are ViT-S/16's."""

    dim: Width = 384
    """width of the ViT"""
    depth: Depth = 12
    """blocks of the ViT"""
    heads: Width = 6
    """attention heads of the ViT"""
    mlp_ratio: Annotated[float, Interval(gt=0, le=1000)] = 4.0
    """hidden width of the ViT's MLPs over its width"""
    layer_norm_eps: Positive = 1e-6
    """epsilon of the ViT's layer norms"""
    pos_interp: PosInterp = "size"
    """how the ViT's stored positions are resampled to another image size"""
    pool: Literal["cls", "mean"] = "cls"
    """what `encode` returns of a ViT: the CLS token or the mean of the patches"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.dim % self.heads == 0, "heads", self.heads, f"must divide the width {self.dim}")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(ViTConfig):
    """An encoder that is a ViT or a ResNet; `ssl_core.encoder` builds it."""

    backbone: Literal["vit", "resnet18", "resnet34", "resnet50"] = "vit"
    """architecture of the encoder"""
    drop_path: Rate = 0.0
    """vit: share of samples that skip the last block in training, rising linearly from the first"""
    width: Annotated[int, Interval(ge=1, le=4096)] = 64
    """resnet: channels of the first stage"""
    small_stem: bool = False
    """resnet: a 3x3 convolution of stride 1 and no max-pool, for images of 64 pixels or less"""

    @property
    def is_vit(self) -> bool:
        """Whether the encoder is a ViT, not a ResNet."""
        return self.backbone == "vit"

    @property
    def stride(self) -> int:
        return self.patch_size if self.is_vit else 1


VIT_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"dim": 192, "depth": 6, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
}
"""Networks for data of three sizes: half of a ViT-Ti, ViT-S, ViT-B."""


def patch_for(side: int) -> int:
    """Patch size for images of `side` pixels: the papers' 16, and 8 below 64 pixels."""
    return 16 if side >= 64 else 8


def encoder_fields(config: BackboneConfig) -> tuple[str, ...]:
    """Names of the fields that an encoder's weights fix; a ViT's positions fix its image size."""
    pixels = ("in_channels", "mean", "std", "backbone")
    if not config.is_vit:
        return (*pixels, "width", "small_stem")
    sizes = ("image_size", "patch_size", "dim", "depth", "heads", "mlp_ratio")
    return (*pixels, *sizes, "layer_norm_eps", "pos_interp", "pool")


def check(ok: bool, field: str, value: object, reason: str) -> None:
    """Raises ConfigError for a field whose value breaks a rule that its bounds cannot state."""
    if not ok:
        raise ConfigError(f"{field} = {value!r}: {reason}")


def to_dict(config: Any) -> dict[str, Any]:
    """JSON-able dict of a config dataclass."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def read_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` as the types of the fields of the dataclass `cls`.

    Raises ConfigError as `read`, and for a name that is no field; it offers the nearest.
    """
    known = field_hints(cls)
    for name in values.keys() - known:
        near = difflib.get_close_matches(str(name), known, n=1) or [field for field in known if str(name) in field]
        offer = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigError(f"{cls.__name__} has no field {name!r}{offer}")
    return {name: read(value, known[name][0], name) for name, value in values.items()}


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """A `cls` from a dict, strictly; missing fields take their defaults.

    Raises ConfigError for an unknown key (it names the nearest known one), a wrong type or a value
    out of range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__} needs an object, got {type(values).__name__}")
    return cls(**read_fields(cls, values))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line per field whose value differs, "field: old → new"."""
    keys = sorted(old.keys() | new.keys())
    return [f"{k}: {old.get(k)!r} → {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]
