"""CLIP keeps the promises that every method makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ssl_clip.config import RECIPES, CLIPConfig
from ssl_clip.pairs import open_pairs
from ssl_testing.conformance import Conformance
from ssl_testing.strangers import Stranger
from ssl_testing.tiny import CLASSES, Pictures, write_pictures

IMAGE = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "crop_scale": (0.5, 1.0)}
TEXT = {"text_dim": 16, "text_depth": 1, "text_heads": 2, "vocab_size": 600, "eos_token_id": 599, "context_length": 8}
TINY = CLIPConfig(**IMAGE, **TEXT, embed_dim=8)


def open_words(data: str | Path | None, *, config: Any, split: str = "train") -> Any:
    if data is not None:
        return open_pairs(data, config=config, split=split)
    h, w = config.size
    return WordedPictures(Pictures(64, size=(h + h // 4, w + w // 4), channels=config.in_channels))


class WordedPictures:
    """A source of pictures and token ids; its one caption makes it a source of pairs."""

    def __init__(self, source: Pictures) -> None:
        self.source, self.labels, self.classes = source, source.labels, source.classes
        self.name, self.fingerprint = source.name, source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> dict[str, Any]:
        ids = torch.zeros(1, 8, dtype=torch.int64)
        ids[0, :4] = torch.tensor([598, 300 + int(self.labels[index]), 400 + index, 599])
        return {**self.source.load(index), "input_ids": ids}

    def texts(self, index: int) -> list[str]:
        return [f"{CLASSES[int(self.labels[index])]} {index}"]

    def captions(self):
        return (self.texts(index)[0] for index in range(len(self)))


class TestCLIP(Conformance):
    recipe = RECIPES["clip"]
    config = TINY
    source = f"{__name__}:open_words"
    folders = (
        "480 small grey in 30 classes",
        "100 large palette in 30 classes",
        "12 medium RGBA in 6 classes",
        "12 large 16-bit",
    )

    def write_strangers(self, folder: Path, stranger: Stranger) -> None:
        super().write_strangers(folder, stranger)
        for number, file in enumerate(sorted(file for file in folder.rglob("*.*") if file.is_file())):
            file.with_suffix(".txt").write_text(f"picture {number} of a stranger\n")

    def write_data(self, folder: Path) -> Path:
        write_pictures(folder, self.config)
        for file in list(folder.rglob("*.png")):
            file.with_suffix(".txt").write_text(f"a {file.parent.name} picture\nnumber {file.stem}\n")
        return folder
