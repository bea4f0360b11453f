"""Something small to train: 8 x 8 images, and a method with every kind of state a run keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import ConfigError, ImageConfig, TrainConfig
from ssl_core.ema import ema_update, frozen_copy
from ssl_core.errors import BadSample
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import Layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.method import Recipe
from ssl_core.pixels import normalize
from ssl_train.data.names import digest
from ssl_train.data.sources import open_images
from ssl_train.data.views import random_flip, random_resized_crop

CLASSES = ("dark", "dim", "light", "bright")


class Pictures:
    """`number` noisy images, uint8 (c, h, w), of four brightnesses, which are their labels.

    Indices in `bad` raise BadSample. Each of `faults` is called with a sample's index before it is
    read, in the loader's process.
    """

    def __init__(self, number: int = 64, *, size: tuple[int, int] = (8, 8), channels: int = 3) -> None:
        self.number, self.size, self.channels = number, size, channels
        self.labels = np.arange(number) % len(CLASSES)
        self.classes = list(CLASSES)
        self.bad: set[int] = set()
        self.faults: list[Any] = []

    def __len__(self) -> int:
        return self.number

    def load(self, index: int) -> dict[str, Any]:
        for fault in self.faults:
            fault(index)
        if index in self.bad:
            raise BadSample("it is a bad one")
        return {"image": torch.from_numpy(self.pixels(index)).permute(2, 0, 1)}

    def pixels(self, index: int) -> np.ndarray:
        """Image `index`, uint8 (h, w, c); the same at every call."""
        low = 48 * int(self.labels[index])
        rng = np.random.default_rng(index)
        return rng.integers(low, low + 96, (*self.size, self.channels), dtype=np.uint8)

    def name(self, index: int) -> str:
        return f"picture {index}"

    def fingerprint(self) -> str:
        return digest(np.array([self.number, *self.size, self.channels]))


def open_pictures(data: str | Path | None, *, config: Any, split: str = "train") -> Any:
    """A recipe's `source`. Without `data`, the images are a quarter larger than the config's."""
    if data is not None:
        return open_images(data, config=config, split=split)
    h, w = config.size
    return Pictures(64, size=(h + h // 4, w + w // 4), channels=config.in_channels)


def write_pictures(folder: Path, config: Any, number: int = 64) -> Path:
    """Write the images as `folder/<class>/<number>.png`; returns the path for --data.

    Images with other than 1 or 3 channels go to `folder.npz`.
    """
    source = open_pictures(None, config=config)
    if config.in_channels not in (1, 3):
        images = np.stack([source.pixels(i) for i in range(number)])
        np.savez(folder.with_suffix(".npz"), images=images, labels=source.labels[:number])
        return folder.with_suffix(".npz")
    for index in range(number):
        path = folder / CLASSES[source.labels[index]] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = source.pixels(index)
        Image.fromarray(pixels if config.in_channels == 3 else pixels[:, :, 0]).save(path)
    return folder


@dataclass(frozen=True, kw_only=True)
class TinyConfig(ImageConfig, TrainConfig):
    """Settings of `Tiny`."""

    image_size: int | tuple[int, int] = 8
    patch_size: int = 4
    crop_pct: float = 1.0
    dim: int = 16
    """width of the features"""
    momentum: float = 0.9
    """of the teacher and the centre"""
    dropout: float = 0.1
    """of the student's features, so that the model has noise of its own"""
    queue: int = 32
    """features of the teacher that are kept as negatives"""
    epochs: float = 2.5
    batch_size: int = 8
    base_lr: float = 0.032


def fitted(network: str, side: int, samples: int) -> TinyConfig:
    """The same network for images of `side` pixels, whatever the network's size."""
    return TinyConfig(image_size=side, epochs=100, batch_size=64)


class Tiny(nn.Module, Pretrained):
    """A student predicts its averaged teacher's features of another view; a queue has negatives."""

    config_class = TinyConfig
    layout = f"{__name__}:LAYOUT"
    accumulates = True
    can_collapse = True
    queue: Tensor
    centre: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        (h, w), dim = config.size, config.dim
        self.student = nn.Sequential(
            nn.Linear(config.in_channels * h * w, dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(dim, dim)
        )
        self.teacher = frozen_copy(self.student)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, dim), dim=1))
        self.register_buffer("centre", torch.zeros(dim))
        self.keys: list[Tensor] = []

    def train(self, mode: bool = True) -> Tiny:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Mean of logsumexp(q · queue / 0.2) - cos(q, k - centre) / 0.2.

        q are the student's features of view 1, k the teacher's of view 0.
        """
        first, second = (self._pixels(view) for view in batch["views"])  # each b (c h w)
        with torch.no_grad():
            keys = self.teacher(first).float()  # b d
        queries = F.normalize(self.student(second).float(), dim=1)
        near = (queries * F.normalize(keys - self.centre, dim=1)).sum(1)  # b
        far = (queries @ self.queue.T / 0.2).logsumexp(1)
        self.keys.append(keys)
        return {"loss": (far - near / 0.2).mean(), "near": near.mean()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        keys = distributed.gather(torch.cat(self.keys))
        self.keys.clear()
        self.centre.lerp_(keys.mean(0), 1 - self.config.momentum)
        self.queue.copy_(torch.cat([F.normalize(keys, dim=1), self.queue])[: len(self.queue)])
        ema_update(self.teacher, self.student, self.config.momentum)

    def encode(self, images: Tensor) -> Tensor:
        """The teacher's features (b, d)."""
        return self.teacher(self._pixels(images))

    def _pixels(self, images: Tensor) -> Tensor:
        return rearrange(normalize(images, self.config.mean, self.config.std), "b c h w -> b (c h w)")


@dataclass(frozen=True)
class TwoCrops:
    config: TinyConfig

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"views": [uint8 (c, h, w), uint8 (c, h, w)]}"""
        crops = [random_resized_crop(sample["image"], rng, self.config.size, (0.4, 1.0)) for _ in range(2)]
        return {"views": [random_flip(crop, rng).contiguous() for crop in crops]}


def show(method: Tiny, source: Any, folder: Path) -> dict[str, str]:
    Image.fromarray(source.load(0)["image"].permute(1, 2, 0).contiguous().numpy()).save(folder / "first.png")
    return {"first.png": "the first picture"}


def to_theirs(config: TinyConfig) -> dict[str, Any]:
    return {"model_type": "tiny", "hidden_size": config.dim}


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> TinyConfig:
    return TinyConfig(dim=values["hidden_size"])


def infer(state: Any) -> TinyConfig:
    raise ConfigError("nobody else has this model")


def export(state: dict[str, Tensor], config: TinyConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return KEYMAP.to_theirs(state)[0], to_theirs(config)


KEYMAP = KeyMap(rows=(("teacher.{i}.{w}", "encoder.{i}.{w}"),))
LAYOUT = Layout(
    keymap=KEYMAP, to_theirs=to_theirs, from_theirs=from_theirs, infer=infer, exports={"transformers": export}
)
PRESETS = {"tiny": {"demo": TinyConfig}}
RECIPES = {
    "tiny": Recipe(
        name="tiny",
        package="ssl_tiny",
        config=f"{__name__}:TinyConfig",
        method=f"{__name__}:Tiny",
        views=f"{__name__}:TwoCrops",
        show=f"{__name__}:show",
        source=f"{__name__}:open_pictures",
        fitted=f"{__name__}:fitted",
    )
}
