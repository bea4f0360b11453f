"""Configurations are frozen dataclasses: what determines a run's result, and how it is run.

This file imports no torch, so that `--help` is instant. A dataclass goes to JSON and back by `to_dict` and `from_dict`;
reading is strict: an unknown key, a wrong type and a value out of range are errors that name the field.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ssl_core.errors import InputError

C = TypeVar("C")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConfigError(InputError, ValueError):
    """A configuration that cannot be used; the message names the field and says what to do."""


Optimizer = Literal["adamw", "sgd", "lars", "adafactor"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the training loop needs to know; a method's config adds its own fields and its paper's values."""

    epochs: float = 100
    """passes over the data"""
    batch_size: int = 256
    """samples per optimiser step, over all processes and micro-batches"""
    base_lr: float = 1e-3
    """learning rate at batch 256: lr = base_lr · batch_size / 256"""
    min_lr: float = 0.0
    """learning rate at the end of the cosine; a peak below it is held"""
    warmup_epochs: float = 0.0
    """epochs of linear warm-up from 0"""
    weight_decay: float = 0.05
    """decay of matrices; biases and other 1-D tensors are not decayed, unless the method's paper does"""
    weight_decay_end: float | None = None
    """weight decay at the end of a cosine over the run; constant without"""
    optimizer: Optimizer = "adamw"
    """sgd and lars have `momentum`, adamw has `betas`; adafactor's rate is a share of each tensor's size, at most 1/√step"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's momenta"""
    momentum: float = 0.9
    """SGD's and LARS's momentum"""
    clip_grad: float | None = None
    """largest norm of the whole gradient"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto asks the hardware; the resolved value is stored"""
    seed: int = 0
    """seed of initialisation, order, augmentation and masks"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            check(all(math.isfinite(x) for x in numbers if isinstance(x, float)), field.name, value, "must be finite")
        check(self.epochs > 0, "epochs", self.epochs, "must be positive")
        check(self.batch_size > 0, "batch_size", self.batch_size, "must be positive")
        check(self.base_lr > 0, "base_lr", self.base_lr, "must be positive")
        check(self.min_lr >= 0, "min_lr", self.min_lr, "must not be negative")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must not be negative")
        check(
            0 <= self.warmup_epochs < self.epochs,
            "warmup_epochs",
            self.warmup_epochs,
            f"must be shorter than the run of {self.epochs:g} epochs",
        )
        check(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "must lie in [0, 1)")
        check(0 <= self.momentum < 1, "momentum", self.momentum, "must lie in [0, 1)")
        end = self.weight_decay_end
        check(end is None or (end > 0 and self.weight_decay > 0), "weight_decay_end", end,
              "must be positive, and weight_decay too")  # fmt: skip
        check(
            self.clip_grad is None or self.clip_grad > 0,
            "clip_grad",
            self.clip_grad,
            "must be positive",
        )
        check(0 <= self.seed < 2**63, "seed", self.seed, "must lie in [0, 2^63)")

    @property
    def lr(self) -> float:
        """Peak learning rate by the linear scaling rule."""
        return self.base_lr * self.batch_size / 256


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What the images look like to a method whose encoder cuts them into patches."""

    image_size: int | tuple[int, int] = 224
    """pixels of a side, or height and width"""
    patch_size: int = 16
    """pixels of a patch's side"""
    in_channels: int = 3
    """channels of an image: 1 grey, 3 RGB, or as many bands as the files have"""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """pixel mean per channel, of values in [0, 1]"""
    std: tuple[float, ...] = IMAGENET_STD
    """pixel standard deviation per channel"""
    crop_pct: float = 0.875
    """share of the shorter side that an evaluation's centre crop keeps"""

    def __post_init__(self) -> None:
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
        check(self.patch_size > 0, "patch_size", self.patch_size, "must be positive")
        check(all(s > 0 for s in self.size), "image_size", self.image_size, "must be positive")
        check(all(s % self.stride == 0 for s in self.size), "image_size", self.image_size,
              f"must be divisible by the patch size {self.patch_size}")  # fmt: skip
        for name in ("mean", "std"):
            check(len(getattr(self, name)) == self.in_channels, name, getattr(self, name),
                  f"needs one value per channel, {self.in_channels} in all")  # fmt: skip
        check(all(s > 0 for s in self.std), "std", self.std, "must be positive")
        check(0 < self.crop_pct <= 1, "crop_pct", self.crop_pct, "must lie in (0, 1]")

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
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ImageConfig):
    """A vision transformer (arXiv 2010.11929). The defaults are ViT-S/16's."""

    dim: int = 384
    """width of the ViT"""
    depth: int = 12
    """blocks of the ViT"""
    heads: int = 6
    """attention heads of the ViT"""
    mlp_ratio: float = 4.0
    """hidden width of the ViT's MLPs over its width"""
    layer_norm_eps: float = 1e-6
    """epsilon of the ViT's layer norms"""
    pos_interp: Literal["offset", "size", "antialias"] = "size"
    """how the ViT's stored positions are resampled to another image size"""
    pool: Literal["cls", "mean"] = "cls"
    """what `encode` returns of a ViT: the CLS token or the mean of the patches"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "heads"):
            check(0 < getattr(self, name) <= 2**16, name, getattr(self, name), "must lie in 1 … 2^16")
        check(0 < self.depth <= 1000, "depth", self.depth, "must lie in 1 … 1000")
        check(0 < self.mlp_ratio <= 1000, "mlp_ratio", self.mlp_ratio, "must lie in (0, 1000]")
        check(self.layer_norm_eps > 0, "layer_norm_eps", self.layer_norm_eps, "must be positive")
        check(self.dim % self.heads == 0, "heads", self.heads, f"must divide the width {self.dim}")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(ViTConfig):
    """The encoder of a method that works with a ViT and with a ResNet; `ssl_core.encoder` builds it."""

    backbone: Literal["vit", "resnet18", "resnet34", "resnet50"] = "vit"
    """architecture of the encoder"""
    drop_path: float = 0.0
    """vit: share of samples that skip the last block in training, rising linearly from the first"""
    width: int = 64
    """resnet: channels of the first stage"""
    small_stem: bool = False
    """resnet: a 3x3 convolution of stride 1 and no max-pool, for images of 64 pixels or less"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.in_channels > 0, "in_channels", self.in_channels, "must be positive")
        check(0 < self.width <= 4096, "width", self.width, "must lie in 1 … 4096")
        check(0 <= self.drop_path < 1, "drop_path", self.drop_path, "must lie in [0, 1)")

    @property
    def is_vit(self) -> bool:
        return self.backbone == "vit"

    @property
    def stride(self) -> int:
        return self.patch_size if self.is_vit else 1


def encoder_fields(config: BackboneConfig) -> tuple[str, ...]:
    """Names of the fields that an encoder's weights fix: of a ViT its image size too, for which its positions are."""
    pixels = ("in_channels", "mean", "std", "backbone")
    if not config.is_vit:
        return (*pixels, "width", "small_stem")
    return (
        *pixels,
        "image_size",
        "patch_size",
        "pos_interp",
        "dim",
        "depth",
        "heads",
        "mlp_ratio",
        "layer_norm_eps",
        "pool",
    )


def check(ok: bool, field: str, value: object, reason: str) -> None:
    """ConfigError for a field whose value is out of range."""
    if not ok:
        raise ConfigError(f"{field} = {value!r}: {reason}")


def check_scale(field: str, value: tuple[float, float]) -> None:
    """ConfigError for a range of a crop's share of the image that is none."""
    low, high = value
    check(0 < low <= high <= 1, field, value, "must be two rising shares in (0, 1]")


def check_shares(field: str, value: float | tuple[float, ...]) -> None:
    """ConfigError for a probability, or several, outside [0, 1]."""
    shares = value if isinstance(value, tuple) else (value,)
    check(all(0 <= p <= 1 for p in shares), field, value, "must lie in [0, 1]")


def check_jitter(field: str, value: tuple[float, float, float, float]) -> None:
    """ConfigError for strengths of brightness, contrast, saturation and hue that colour jitter cannot have."""
    check(all(0 <= x < math.inf for x in value) and value[3] <= 0.5, field, value,
          "must not be negative, and hue at most 0.5, half a circle")  # fmt: skip


def to_dict(config: Any) -> dict[str, Any]:
    """JSON-able dict of a config dataclass."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """A `cls` from a dict, strictly; missing fields take their defaults.

    Raises ConfigError for an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__} needs an object, got {type(values).__name__}")
    hints = get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigError(f"{cls.__name__} has no field {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        arguments[key] = _typed(value, known[key], key)
    return cls(**arguments)


def _typed(value: Any, hint: Any, field: str) -> Any:
    """`value` as the type that `hint` says: only an int for a float, and a list for a tuple, are converted."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _typed(value, option, field)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) == len(value):
            return tuple(_typed(v, a, field) for v, a in zip(value, args, strict=True))
    elif hint is float and type(value) in (int, float):
        if abs(value) <= sys.float_info.max:  # neither NaN nor infinite, nor an integer beyond
            return float(value)
    elif hint is int and type(value) is int:
        if abs(value) < 2**63:
            return value
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and origin is None and type(value) is hint:
        return value
    raise ConfigError(f"{field} = {value!r}: expected {_name(hint)}")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def read_file(path: str | Path) -> dict[str, Any]:
    """The values of a .toml or .json configuration file.

    Raises ConfigError when it is missing, is neither, does not parse, or holds something else than fields.
    """
    path = Path(path)
    parse = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix)
    if parse is None:
        raise ConfigError(f"{path}: a configuration file ends in .toml or .json")
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not fields and their values")
    return values


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line per field whose value differs, "field: old → new"."""
    keys = sorted(old.keys() | new.keys())
    return [f"{k}: {old.get(k)!r} → {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]
