"""Configurations of SimCLR, MoCo, BYOL and SimSiam and their presets. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Predicate

from ssl_core.bounds import Count, Jitter, Positive, Scale, Share, Width, rising
from ssl_core.config import BackboneConfig, Optimizer, TrainConfig, check
from ssl_core.method import Recipe

Range = Annotated[tuple[Positive, Positive], Predicate(rising)]
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(BackboneConfig, TrainConfig):
    """The encoder, the recipe and the two views of an image, in order: crop, flip, colour, grey,
    blur, solarize."""

    backbone: Literal["vit", "resnet18", "resnet34", "resnet50"] = "resnet50"
    """architecture of the encoder"""
    crop_scale: Scale = (0.08, 1.0)
    """share of the image's area in a random crop"""
    flip: bool = True
    """mirror at random"""
    turn: bool = False
    """turn and mirror a view in all ways that leave its shape, for pictures from above"""
    jitter: Jitter = (0.8, 0.8, 0.8, 0.2)
    """strength of brightness, contrast, saturation and hue; the last two need RGB"""
    jitter_p: Share = 0.8
    """share of views whose colours are jittered"""
    grayscale_p: Share = 0.2
    """share of views without colour"""
    blur_p: tuple[Share, Share] = (0.5, 0.5)
    """share of first and of second views that are blurred"""
    blur_sigma: Range = (0.1, 2.0)
    """range of the blur's standard deviation in pixels"""
    solarize_p: tuple[Share, Share] = (0.0, 0.0)
    """share of first and of second views whose bright pixels are inverted"""
    gamma: Range | None = None
    """range of the exponent of every pixel, in [0, 1]"""
    noise: Share = 0.0
    """largest standard deviation of noise, as a share of the range"""
    band_drop_p: Share = 0.0
    """share of bands set to 0; one is always left"""
    stain: Share = 0.0
    """largest change of the density of the stains of a tissue; needs RGB"""
    batch_size: Annotated[int, Ge(2)] = 256
    """samples per optimiser step, over all processes and micro-batches"""


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(ContrastiveConfig):
    """The defaults are the paper's ResNet-50 for 100 epochs (arXiv 2002.05709)."""

    temperature: Positive = 0.1
    """of the softmax over cosine similarities"""
    head_layers: Literal[2, 3] = 2
    """layers of the projector: 2 in the paper, 3 in SimCLRv2"""
    projection: Width = 128
    """width of what is compared"""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """SimCLR gives its network pixels in [0, 1] as they are"""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """pixel standard deviation per channel"""

    optimizer: Optimizer = "lars"
    epochs: float = 100
    batch_size: int = 4096
    base_lr: float = 0.3
    warmup_epochs: float = 10
    weight_decay: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(ContrastiveConfig):
    """The defaults are MoCo v2's ResNet-50 for 200 epochs (arXiv 2003.04297)."""

    temperature: Positive = 0.2
    """of the softmax over cosine similarities"""
    queue: Annotated[int, Interval(ge=1, lt=2**31)] = 65536
    """keys of earlier steps that serve as negatives"""
    ema: Share = 0.999
    """momentum of the key encoder"""
    head_layers: Literal[1, 2] = 2
    """layers of the projector: 1 in v1, 2 in v2"""
    projection: Width = 128
    """width of what is compared"""
    symmetric: bool = False
    """each view is query once and key once, which counts as about twice the epochs"""
    bn_splits: Count = 8
    """parts of the batch with a batch norm each, shuffled for the keys: the authors' 8 GPUs"""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    optimizer: Optimizer = "sgd"
    epochs: float = 200
    batch_size: int = 256
    base_lr: float = 0.03
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.batch_size if self.is_vit else self.batch_size // 2
        parts = f"a batch of {self.batch_size} can be split into 1 … {most} parts of two samples or more"
        check(self.bn_splits <= most, "bn_splits", self.bn_splits, parts)


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(ContrastiveConfig):
    """The defaults are the paper's ResNet-50 for 1000 epochs (arXiv 2006.07733)."""

    ema: Share = 0.996
    """momentum of the target at the start; it rises to 1 by a cosine"""
    hidden: Width = 4096
    """hidden width of projector and predictor"""
    projection: Width = 256
    """width of what is predicted"""

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur_p: tuple[float, float] = (1.0, 0.1)
    solarize_p: tuple[float, float] = (0.0, 0.2)
    optimizer: Optimizer = "lars"
    epochs: float = 1000
    batch_size: int = 4096
    base_lr: float = 0.2
    warmup_epochs: float = 10
    weight_decay: float = 1.5e-6


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig(ContrastiveConfig):
    """The defaults are the paper's ResNet-50 for 100 epochs (arXiv 2011.10566)."""

    head_layers: Literal[2, 3] = 3
    """layers of the projector: 3 in the paper, 2 for CIFAR"""
    projection: Width = 2048
    """width of what is predicted"""
    predictor_hidden: Width = 512
    """hidden width of the predictor, a quarter of the projection"""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    optimizer: Optimizer = "sgd"
    epochs: float = 100
    batch_size: int = 512
    base_lr: float = 0.05
    weight_decay: float = 1e-4


SMALL_RESNET: Any = {"backbone": "resnet18", "small_stem": True, "image_size": 32, "crop_pct": 1.0}

CIFAR: Any = SMALL_RESNET | {"mean": CIFAR_MEAN, "std": CIFAR_STD, "batch_size": 512, "blur_p": (0.0, 0.0)}
"""What every recipe for CIFAR-10 has: ResNet-18 with the small stem, no blur at 32 pixels."""

SCENE_VIEWS: Any = {"crop_scale": (0.5, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "blur_p": (0.3, 0.3)}
SCENES: Any = (
    SMALL_RESNET | SCENE_VIEWS | {"solarize_p": (0.0, 0.0), "width": 12, "batch_size": 128, "precision": "fp32"}
)
"""A small ResNet-18 for the built-in scenes in minutes on a CPU; the figures stand in
docs/benchmarks.md."""

SCENES_ADAMW: Any = {"optimizer": "adamw", "base_lr": 4e-3, "weight_decay": 0.05, "warmup_epochs": 1.0}
"""Its optimiser. The papers' SGD leaves the plateau that these runs begin with for two of three
seeds."""

VIT_ADAMW: Any = {"optimizer": "adamw", "base_lr": 1.5e-4, "weight_decay": 0.1, "warmup_epochs": 40.0}
VIT_SMALL: Any = VIT_ADAMW | {"backbone": "vit", "batch_size": 1024, "epochs": 300.0}
"""ViT-S/16 with MoCo v3's optimiser (arXiv 2104.02057): no figure of these four papers, a start for
one machine."""


def simclr_imagenet_resnet50() -> SimCLRConfig:
    """ResNet-50, 100 epochs at batch 4096: linear probe 64.5 % (the authors' README), 69.1 % after
    1000. Not run here."""
    return SimCLRConfig()


def simclr_v2_resnet50() -> SimCLRConfig:
    """SimCLRv2 (arXiv 2006.10029): a projector of three layers, decay 1e-4, 800 epochs.

    Linear probe 71.7 % (the authors' README); fine-tuning starts from the projector's first layer
    there, from the encoder here. Not run here.
    """
    return SimCLRConfig(head_layers=3, weight_decay=1e-4, epochs=800, warmup_epochs=40)


def simclr_cifar_resnet18() -> SimCLRConfig:
    """CIFAR-10: the authors' repository has about 91 % (linear, 1000 epochs). Not run here."""
    return SimCLRConfig(
        **CIFAR, jitter=(0.4, 0.4, 0.4, 0.1), temperature=0.5, epochs=1000, base_lr=1.0, weight_decay=1e-4
    )


def simclr_vit_small() -> SimCLRConfig:
    """ViT-S/16: not in the paper; MoCo v3's optimiser. Not run here."""
    return SimCLRConfig(**VIT_SMALL, temperature=0.2)


def simclr_demo() -> SimCLRConfig:
    """The built-in scenes in minutes on a CPU."""
    return SimCLRConfig(**SCENES, **SCENES_ADAMW, epochs=13, temperature=0.2)


def moco_imagenet_resnet50() -> MoCoConfig:
    """MoCo v2, 200 epochs at batch 256: linear probe 67.7 %, 71.1 % after 800 (the authors'
    README). Not run here."""
    return MoCoConfig()


def moco_v1_resnet50() -> MoCoConfig:
    """MoCo v1 (arXiv 1911.05722): one linear layer, T 0.07, jitter in every view, no blur; linear
    probe 60.6 %.

    The authors divide the learning rate by 10 after 120 and 160 epochs, this is half a cosine.
    Not run here.
    """
    return MoCoConfig(temperature=0.07, head_layers=1, jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, blur_p=(0.0, 0.0))


def moco_cifar_resnet18() -> MoCoConfig:
    """CIFAR-10 as in the authors' notebook: k-NN 82.6 % after 200 epochs, 88.7 % after 800 (85.3
    and 89.7 % with symmetric=True). Not run here."""
    head = {"temperature": 0.1, "queue": 4096, "ema": 0.99, "head_layers": 1}
    return MoCoConfig(**CIFAR, **head, crop_scale=(0.08, 1.0), weight_decay=5e-4)


def moco_vit_small() -> MoCoConfig:
    """ViT-S/16: not in the papers; MoCo v3's optimiser. Not run here."""
    return MoCoConfig(**VIT_SMALL, bn_splits=1)


def moco_demo() -> MoCoConfig:
    """The built-in scenes in minutes on a CPU."""
    return MoCoConfig(**SCENES, **SCENES_ADAMW, epochs=13, queue=1024, ema=0.99, bn_splits=4)


def byol_imagenet_resnet50() -> BYOLConfig:
    """ResNet-50, 1000 epochs at batch 4096: linear probe 74.3 % (the paper; 74.0 to 74.5 in the
    authors' repository).

    With 100 epochs the authors take base_lr 0.45, ema 0.99 and decay 1e-6; with 300 epochs 0.3.
    Not run here.
    """
    return BYOLConfig()


def byol_cifar_resnet18() -> BYOLConfig:
    """CIFAR-10: not in the paper; the optimiser of the authors' small check (ResNet-18 on
    Imagenette, 1000 epochs).

    solo-learn's table has 92.58 % (linear, 1000 epochs) with a LARS of another kind. Not run here.
    """
    return BYOLConfig(**CIFAR | {"batch_size": 256}, base_lr=2.0, weight_decay=1e-6)


def byol_vit_small() -> BYOLConfig:
    """ViT-S/16: not in the paper; MoCo v3's optimiser. Not run here."""
    return BYOLConfig(**VIT_SMALL)


def byol_demo() -> BYOLConfig:
    """The built-in scenes in minutes on a CPU."""
    sgd: Any = {"optimizer": "sgd", "base_lr": 0.2, "weight_decay": 2e-3, "warmup_epochs": 1}
    return BYOLConfig(**SCENES, **sgd, hidden=512, projection=128, ema=0.98, epochs=16)


def simsiam_imagenet_resnet50() -> SimSiamConfig:
    """ResNet-50, 100 epochs at batch 512: linear probe 68.1 % (the authors' README), 71.3 % after
    800 (the paper).

    Not run here.
    """
    return SimSiamConfig()


def simsiam_cifar_resnet18() -> SimSiamConfig:
    """CIFAR-10: linear 91.8 % after 800 epochs (the paper, appendix D). Not run here."""
    return SimSiamConfig(**CIFAR, head_layers=2, epochs=800, base_lr=0.03, weight_decay=5e-4)


def simsiam_vit_small() -> SimSiamConfig:
    """ViT-S/16: not in the paper; MoCo v3's optimiser. Not run here."""
    return SimSiamConfig(**VIT_SMALL)


def simsiam_demo() -> SimSiamConfig:
    """The built-in scenes in minutes on a CPU."""
    return SimSiamConfig(**SCENES, **SCENES_ADAMW, epochs=14, head_layers=2, projection=512, predictor_hidden=128)


def _network(network: str, side: int) -> dict[str, Any]:
    """A ResNet for images of `side` pixels, with the small stem up to 64."""
    small = side <= 64
    sizes: Any = {"tiny": {"backbone": "resnet18", "width": 32}, "small": {"backbone": "resnet18"}, "base": {}}[network]
    return {"image_size": side, "small_stem": small, **({"blur_p": (0.0, 0.0)} if small else {}), **sizes}


FITTED: Any = {"optimizer": "adamw", "base_lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 10.0, "batch_size": 512}
"""The optimiser of recipes that are fitted to data, as in the demos."""


def simclr_fitted(network: str, side: int, samples: int) -> SimCLRConfig:
    """A recipe for `samples` images of `side` pixels, by a network that is tiny, small or base."""
    return SimCLRConfig(**_network(network, side), **FITTED, epochs=1000, temperature=0.2)


def moco_fitted(network: str, side: int, samples: int) -> MoCoConfig:
    """As `simclr_fitted`. The queue holds half of the data at most, so that few of its keys are of
    the query's own image."""
    queue = min(65536, max(64, 1 << (max(1, samples // 2).bit_length() - 1)))
    return MoCoConfig(**_network(network, side), **FITTED, epochs=800, queue=queue, ema=0.99, bn_splits=2)


def byol_fitted(network: str, side: int, samples: int) -> BYOLConfig:
    """As `simclr_fitted`, by the demo's SGD."""
    heads: Any = {} if network == "base" else {"hidden": 1024, "projection": 256}
    views: Any = {"solarize_p": (0.0, 0.0)} if side <= 64 else {}
    run: Any = {"optimizer": "sgd", "base_lr": 0.2, "weight_decay": 1e-3, "ema": 0.99, "batch_size": 512}
    return BYOLConfig(**_network(network, side), **heads, **views, **run)


def simsiam_fitted(network: str, side: int, samples: int) -> SimSiamConfig:
    """As `simclr_fitted`."""
    heads: Any = {} if network == "base" else {"head_layers": 2, "projection": 512, "predictor_hidden": 128}
    return SimSiamConfig(**_network(network, side), **FITTED, **heads, epochs=800)


PRESETS: dict[str, dict[str, Callable[[], Any]]] = {
    "simclr": {
        "demo": simclr_demo,
        "cifar_resnet18": simclr_cifar_resnet18,
        "vit_small": simclr_vit_small,
        "imagenet_resnet50": simclr_imagenet_resnet50,
        "v2_resnet50": simclr_v2_resnet50,
    },
    "moco": {
        "demo": moco_demo,
        "cifar_resnet18": moco_cifar_resnet18,
        "vit_small": moco_vit_small,
        "imagenet_resnet50": moco_imagenet_resnet50,
        "v1_resnet50": moco_v1_resnet50,
    },
    "byol": {
        "demo": byol_demo,
        "cifar_resnet18": byol_cifar_resnet18,
        "vit_small": byol_vit_small,
        "imagenet_resnet50": byol_imagenet_resnet50,
    },
    "simsiam": {
        "demo": simsiam_demo,
        "cifar_resnet18": simsiam_cifar_resnet18,
        "vit_small": simsiam_vit_small,
        "imagenet_resnet50": simsiam_imagenet_resnet50,
    },
}


def _recipe(name: str, method: str) -> Recipe:
    return Recipe(
        name=name,
        package="ssl_contrastive",
        config=f"ssl_contrastive.config:{method}Config",
        method=f"ssl_contrastive.{name}:{method}",
        views="ssl_contrastive.views:build",
        show="ssl_contrastive.show:show",
        fitted=f"ssl_contrastive.config:{name}_fitted",
    )


METHODS = {"simclr": "SimCLR", "moco": "MoCo", "byol": "BYOL", "simsiam": "SimSiam"}
RECIPES = {name: _recipe(name, method) for name, method in METHODS.items()}
