"""Small models, pictures and pairs for the tests of CLIP."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_clip import CLIP, CLIPConfig, Tokenizer
from ssl_train.options import RunOptions

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220), "yellow": (210, 210, 40)}
PLACES = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}


@pytest.fixture(scope="session")
def small() -> CLIPConfig:
    """A model to be used as it starts."""
    image = {"image_size": 16, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2}
    text = {"text_dim": 16, "text_depth": 1, "text_heads": 2, "vocab_size": 600, "eos_token_id": 599}
    return CLIPConfig(**image, **text, embed_dim=8, context_length=12)


@pytest.fixture(scope="session")
def trainable() -> CLIPConfig:
    """A model that learns a few captions in seconds."""
    image = {"image_size": 16, "patch_size": 8, "dim": 32, "depth": 2, "heads": 2, "crop_scale": (1.0, 1.0)}
    text = {"text_dim": 32, "text_depth": 1, "text_heads": 2, "vocab_size": 600, "eos_token_id": 599}
    recipe = {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "base_lr": 0.05, "weight_decay": 0.01}
    both = {"embed_dim": 16, "context_length": 12, "activation": "gelu", "precision": "fp32"}
    return CLIPConfig(**image, **text, **recipe, **both)


@pytest.fixture(scope="session")
def options() -> RunOptions:
    return RunOptions(device="cpu", workers=0, log_every=5)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One for all: trainings differ in which of equally frequent pairs they merge first."""
    return Tokenizer.trained(["a photo of a red green blue picture", "close-up small large"], 600)


@pytest.fixture
def model(small, tokenizer):
    """A function that makes the same model, with changes to its config."""

    def build(**changes) -> CLIP:
        torch.manual_seed(0)
        clip = CLIP(dataclasses.replace(small, **changes)).eval()
        clip.tokenizer = tokenizer
        return clip

    return build


@pytest.fixture
def photos():
    """A function that fills a folder with files of noise."""

    def write(folder: Path, number: int = 5) -> Path:
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(number):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        return folder

    return write


@pytest.fixture
def images():
    """A function that makes uint8 images of noise."""

    def draw(n: int = 3) -> torch.Tensor:
        return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    return draw


@pytest.fixture
def write_pairs():
    """A function that writes grey noise with a coloured patch in a corner; captions name both."""

    def write(folder: Path, *, seed: int = 0, each: int = 20, colours: int = 4) -> Path:
        folder.mkdir()
        rng, rows = np.random.default_rng(seed), []
        for colour, rgb in list(COLOURS.items())[:colours]:
            for place, (y, x) in PLACES.items():
                for i in range(each):
                    pixels = rng.integers(90, 160, (16, 16, 3))
                    pixels[y : y + 8, x : x + 8] = np.array(rgb) + rng.integers(-25, 25, (8, 8, 3))
                    name = f"{colour}-{place}-{i}.png".replace(" ", "-")
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
                    rows.append(json.dumps({"path": name, "caption": f"a {colour} patch at the {place}"}))
        (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
        return folder / "pairs.jsonl"

    return write
