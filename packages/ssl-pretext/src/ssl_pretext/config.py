"""Configurations of the four pretext tasks and their presets. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from ssl_core.bounds import Count, Portion, Rate, Scale, Share, Width
from ssl_core.config import BackboneConfig, Optimizer, TrainConfig, check
from ssl_core.method import Recipe

Hidden = Annotated[int, Interval(ge=1, le=2**20)]
"""Width of a layer of a classifier."""


@dataclass(frozen=True, kw_only=True)
class PretextConfig(BackboneConfig, TrainConfig):
    """What the four have in common. The recipe's defaults are those of Goyal et al. 2019 (arXiv
    1905.01235) for ResNet-50: SGD, 105 epochs, learning rate 0.1 at batch 256; theirs falls in four
    steps, ours along a cosine."""

    backbone: Literal["vit", "resnet18", "resnet34", "resnet50"] = "resnet50"
    crop_scale: Scale = (1.0, 1.0)
    """area of the random square over that of the largest square in the image"""
    flip: bool = True
    """mirror left to right at random, before anything else is done"""
    turn: bool = False
    """turn and mirror the square in all eight ways, for pictures from above"""
    feature_stage: Literal[1, 2, 3, 4] = 4
    """stage of a ResNet whose mean `encode` returns; the last one suits the task best"""

    epochs: float = 105
    batch_size: int = 256
    optimizer: Optimizer = "sgd"
    base_lr: float = 0.1
    warmup_epochs: float = 5
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        stage, (height, width) = self.feature_stage, self.size
        check(stage == 4 or not self.is_vit, "feature_stage", stage, "a ViT has no stages: leave it at 4")
        check(height == width, "image_size", self.image_size, "must be a square, of which the tasks are made")


@dataclass(frozen=True, kw_only=True)
class RotationConfig(PretextConfig):
    """Rotation prediction (arXiv 1803.07728)."""

    crop_scale: tuple[float, float] = (0.2, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        why = "turns are what rotation predicts, and pictures from above have no up: take jigsaw, or another method"
        check(not self.turn, "turn", self.turn, why)


@dataclass(frozen=True, kw_only=True)
class TilesConfig(PretextConfig):
    """A square cut into 3 x 3 cells, of each of which a tile is seen."""

    puzzle_size: Width = 255
    """pixels of the square that is cut"""
    tile_size: Width = 64
    """pixels of a tile's side; it lies anywhere in its cell of puzzle_size / 3"""
    grayscale: Share = 0.66
    """share of the images that are seen grey, so that chromatic aberration gives nothing away"""
    embedding: Hidden = 1000
    """width to which a tile's features are brought"""
    hidden: Hidden = 4096
    """hidden width of the classifier"""

    def __post_init__(self) -> None:
        super().__post_init__()
        tile = self.tile_size
        check(tile <= self.cell, "tile_size", tile, f"must be at most {self.cell}, a cell")
        check(tile % self.stride == 0, "tile_size", tile, f"must be divisible by the patch size {self.patch_size}")

    @property
    def cell(self) -> int:
        """Pixels of a cell's side."""
        return self.puzzle_size // 3


@dataclass(frozen=True, kw_only=True)
class JigsawConfig(TilesConfig):
    """Jigsaw puzzles (arXiv 1603.09246), as Goyal et al. train them."""

    permutations: Annotated[int, Interval(ge=2, le=math.factorial(9))] = 100
    """orders that are told apart, as different from each other as orders can be"""
    orders_per_image: Count = 1
    """orders that are asked about each image; all of them cost one pass of the encoder"""
    dropout: Rate = 0.5
    """share of the classifier's hidden units that are dropped"""

    def __post_init__(self) -> None:
        super().__post_init__()
        orders, most = self.orders_per_image, self.permutations
        check(orders <= most, "orders_per_image", orders, f"must be at most {most}, the permutations")


@dataclass(frozen=True, kw_only=True)
class RelativePatchConfig(TilesConfig):
    """Relative patch location (arXiv 1505.05192), on the tiles of the jigsaw puzzle."""

    pairs: Literal["centre", "all"] = "centre"
    """centre: the eight tiles around the middle one; all: any two that touch, 40 pairs"""
    color_drop: bool = False
    """leave one random channel of each tile, the paper's guard against chromatic aberration"""


@dataclass(frozen=True, kw_only=True)
class ColorizationConfig(PretextConfig):
    """Colorization (arXiv 1603.08511): the encoder sees lightness alone, so its stem has one
    channel."""

    target: Literal["bins", "regression"] = "bins"
    """bins: classes of colours; regression: a and b themselves, whose mean is grey"""
    bin_size: Annotated[float, Interval(ge=4, le=20)] = 10.0
    """side of a cell of the ab plane"""
    neighbours: Annotated[int, Interval(ge=1, le=16)] = 10
    """cells among which a colour is divided; 5 in the paper, 10 in the authors' code"""
    uniform: Portion = 0.5
    """share of the uniform distribution in the prior that weights colours; 1 weights all alike"""
    prior_momentum: Rate = 0.99
    """of the running mean of the colours seen, which is the prior"""
    temperature: Annotated[float, Interval(ge=0.01, le=10)] = 0.38
    """of the annealed mean: 1 gives the mean, near 0 the most likely colour"""
    hidden: Width = 128
    """channels of the decoder"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.in_channels == 3, "in_channels", self.in_channels, "colours are predicted of RGB images, 3 channels")
        cells = f"must be divisible by {self.cell}, the pixels of a cell of the encoder's map"
        check(self.size[0] % self.cell == 0, "image_size", self.image_size, cells)

    @property
    def encoder(self) -> BackboneConfig:
        """What the encoder sees: one channel, L / 100, brought from 0 … 1 to -1 … 1."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(BackboneConfig)}
        return BackboneConfig(**{**shared, "in_channels": 1, "mean": (0.5,), "std": (0.5,)})

    @property
    def cell(self) -> int:
        """Pixels between two places of the encoder's map."""
        return self.patch_size if self.is_vit else 8 if self.small_stem else 32

    @property
    def color_stride(self) -> int:
        """Pixels between two predicted colours: 4, or fewer where the encoder's map is as fine."""
        return math.gcd(4, self.cell)


SMALL_RESNET: Any = {"backbone": "resnet18", "small_stem": True, "image_size": 32, "crop_pct": 1.0}
SMALL: Any = SMALL_RESNET | {"width": 16, "batch_size": 64, "base_lr": 0.2, "precision": "fp32"}
"""The network of the demos, and how it is trained."""
CLOSE: Any = SMALL | {"image_size": 48, "crop_scale": (0.3, 1.0)}
"""The same where tiles are looked at: whole scenes of 32 pixels give a tile's place away by their
outlines."""
TILES: Any = {"puzzle_size": 36, "tile_size": 10, "feature_stage": 3, "embedding": 64, "hidden": 256}
"""The puzzles of the demos, and their classifier."""
ADAMW: Any = {"optimizer": "adamw", "base_lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10}
VIT: Any = ADAMW | {"backbone": "vit", "pool": "mean", "epochs": 100, "batch_size": 512}
"""ViT-S/16, the encoder's defaults, and the recipe that supervised ViTs have."""


def demo_rotation() -> RotationConfig:
    """The built-in scenes, lit from anywhere, in minutes on two CPU cores; the figures stand in
    docs/benchmarks.md."""
    return RotationConfig(**SMALL | {"width": 12}, crop_scale=(0.6, 1.0), epochs=2, warmup_epochs=0.3)


def rotation_resnet50() -> RotationConfig:
    """ResNet-50 on ImageNet: 48.2 % in the linear probe (Goyal et al.'s library VISSL, 105 epochs).
    Not run here."""
    return RotationConfig()


def rotation_cifar() -> RotationConfig:
    """The paper's recipe for CIFAR-10 with a ResNet-18 in place of its network in network: batch
    128, 200 epochs.

    With the paper's network, frozen after its second block, a non-linear classifier reaches 89.06
    %, supervised 92.80 (the paper). Not run here.
    """
    run = {"epochs": 200, "batch_size": 128, "base_lr": 0.2, "warmup_epochs": 0, "weight_decay": 5e-4}
    return RotationConfig(**SMALL_RESNET, crop_scale=(0.6, 1.0), **run)


def rotation_vit_small() -> RotationConfig:
    """ViT-S/16 with AdamW: not in a paper; a start for one GPU. Not run here."""
    return RotationConfig(**VIT)


def demo_jigsaw() -> JigsawConfig:
    """The built-in scenes at 48 pixels in minutes on two CPU cores; the figures stand in
    docs/benchmarks.md."""
    orders: dict[str, Any] = {"permutations": 504, "orders_per_image": 8}
    return JigsawConfig(**CLOSE, **TILES, **orders, dropout=0.0, epochs=4, warmup_epochs=0.5)


def jigsaw_resnet50() -> JigsawConfig:
    """ResNet-50 on ImageNet with 100 permutations: 48.6 % in the linear probe (VISSL, 105 epochs).
    Not run here."""
    return JigsawConfig()


def jigsaw_resnet50_many() -> JigsawConfig:
    """Kolesnikov et al. 2019 (arXiv 1901.09005): 16 orders of an image from one pass of the
    encoder, 35 epochs.

    No published figure for this network with our schedule. Not run here.
    """
    return JigsawConfig(orders_per_image=16, epochs=35)


def jigsaw_vit_small() -> JigsawConfig:
    """ViT-S/16 with AdamW, cells of 80 pixels: not in a paper; a start for one GPU.
    Not run here."""
    return JigsawConfig(**VIT, puzzle_size=240)


def demo_relative_patch() -> RelativePatchConfig:
    """The built-in scenes at 48 pixels in minutes on two CPU cores; the figures stand in
    docs/benchmarks.md."""
    return RelativePatchConfig(**CLOSE, **TILES, pairs="all", epochs=4, warmup_epochs=0.5)


def relative_patch_resnet50() -> RelativePatchConfig:
    """Kolesnikov et al. 2019 (arXiv 1901.09005): the eight neighbours of the middle tile, 35
    epochs. Not run here."""
    return RelativePatchConfig(epochs=35)


def relative_patch_doersch() -> RelativePatchConfig:
    """The paper's pairs and colour dropping, on a ResNet-50 in place of its network.
    Not run here."""
    return RelativePatchConfig(pairs="all", color_drop=True, grayscale=0.0)


def demo_colorization() -> ColorizationConfig:
    """The built-in scenes in minutes on two CPU cores; the figures stand in docs/benchmarks.md."""
    return ColorizationConfig(**SMALL, crop_scale=(0.6, 1.0), hidden=64, epochs=5, warmup_epochs=0.5)


def colorization_resnet50() -> ColorizationConfig:
    """ResNet-50 on ImageNet: 40.1 % in the linear probe (VISSL, 105 epochs). Not run here."""
    return ColorizationConfig(crop_scale=(0.2, 1.0))


def colorization_vit_small() -> ColorizationConfig:
    """ViT-S/16 with AdamW: not in a paper; a start for one GPU. Not run here."""
    return ColorizationConfig(**VIT, crop_scale=(0.2, 1.0))


def _network(network: str, side: int) -> dict[str, Any]:
    """A ResNet for images of `side` pixels, with the small stem up to 64, and its SGD."""
    sizes: Any = {"tiny": {"backbone": "resnet18", "width": 32}, "small": {"backbone": "resnet18"}, "base": {}}[network]
    return {"image_size": side, "small_stem": side <= 64, "crop_scale": (0.2, 1.0), "epochs": 400, **sizes}


def _tiles(network: str, side: int) -> dict[str, Any]:
    """The same for tiles of three quarters of a cell, with the demo's classifier for small data."""
    cell = side // 3
    heads: Any = {} if network == "base" else {"embedding": 256, "hidden": 1024}
    return {**_network(network, side), "puzzle_size": 3 * cell, "tile_size": 3 * cell // 4, "feature_stage": 3, **heads}


def rotation_fitted(network: str, side: int, samples: int) -> RotationConfig:
    """A recipe for `samples` images of `side` pixels, by a network that is tiny, small or base."""
    return RotationConfig(**_network(network, side))


def jigsaw_fitted(network: str, side: int, samples: int) -> JigsawConfig:
    """As `rotation_fitted`, with eight orders of an image from one pass of the encoder."""
    return JigsawConfig(**_tiles(network, side), orders_per_image=8, dropout=0.0)


def colorization_fitted(network: str, side: int, samples: int) -> ColorizationConfig:
    """As `rotation_fitted`."""
    return ColorizationConfig(**_network(network, side))


def relative_patch_fitted(network: str, side: int, samples: int) -> RelativePatchConfig:
    """As `rotation_fitted`, of any two tiles that touch."""
    return RelativePatchConfig(**_tiles(network, side), pairs="all")


PRESETS: dict[str, dict[str, Callable[[], Any]]] = {
    "rotation": {
        "demo": demo_rotation,
        "cifar": rotation_cifar,
        "resnet50": rotation_resnet50,
        "vit_small": rotation_vit_small,
    },
    "jigsaw": {
        "demo": demo_jigsaw,
        "resnet50": jigsaw_resnet50,
        "resnet50_many": jigsaw_resnet50_many,
        "vit_small": jigsaw_vit_small,
    },
    "colorization": {"demo": demo_colorization, "resnet50": colorization_resnet50, "vit_small": colorization_vit_small},
    "relative-patch": {
        "demo": demo_relative_patch,
        "resnet50": relative_patch_resnet50,
        "doersch": relative_patch_doersch,
    },
}


def _recipe(name: str, method: str, view: str, source: str = "ssl_train.data.sources:open_images") -> Recipe:
    module = name.replace("-", "_")
    return Recipe(
        name=name,
        package="ssl_pretext",
        config=f"ssl_pretext.config:{method}Config",
        method=f"ssl_pretext.{module}:{method}",
        views=f"ssl_pretext.views:{view}",
        show=f"ssl_pretext.show:show_{module}",
        source=source,
        fitted=f"ssl_pretext.config:{module}_fitted",
    )


RECIPES = {
    "rotation": _recipe("rotation", "Rotation", "SquareView", "ssl_pretext.views:open_turnable"),
    "jigsaw": _recipe("jigsaw", "Jigsaw", "JigsawView"),
    "colorization": _recipe("colorization", "Colorization", "SquareView"),
    "relative-patch": _recipe("relative-patch", "RelativePatch", "TilesView"),
}
