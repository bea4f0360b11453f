"""Damage the files of an index of images: a search must give our error, or the same result."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tools.faults.table import Row

from ssl_clip import CLIP, CLIPConfig, ImageIndex, Tokenizer
from ssl_clip import index as index_module
from ssl_core.errors import InputError
from ssl_testing.faults import mutate

IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2}
TEXT: dict[str, Any] = {"text_dim": 16, "text_depth": 1, "text_heads": 2, "vocab_size": 600, "eos_token_id": 599}
QUERIES = ("red", "a green picture", "small")

Found = list[list[tuple[str, float]]]
Damage = Callable[[Path, np.random.Generator], object]


def index(place: Path, count: int, seed: int) -> list[Row]:
    """Flip a bit, or damage in any other way, a file of an index of 64 pictures, `count` times
    each."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    clip = CLIP(CLIPConfig(**IMAGE, **TEXT, embed_dim=8, context_length=12)).eval()
    clip.tokenizer = Tokenizer.trained(["a photo of a red green blue picture", "close-up small large"], 600)
    photos = place / "photos"
    photos.mkdir()
    for i in range(64):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    # so few pictures get faiss's lists too, where faiss is installed
    index_module.EXACT = 3
    made = ImageIndex.build(clip, photos, place / "my.index")
    right = [_found(made, exact=exact) for exact in (False, True)]
    damages: dict[str, Damage] = {"a flipped bit": _flip, "any damage": mutate}
    return [_row(name, damage, clip, place, count, rng, right) for name, damage in damages.items()]


def _row(
    name: str, damage: Damage, clip: CLIP, place: Path, count: int, rng: np.random.Generator, right: list[Found]
) -> Row:
    outcomes = Counter[str]()
    for _ in range(count):
        copy = place / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place / "my.index", copy)
        files = sorted(path for path in copy.iterdir() if path.name != ".lock")
        damage(files[int(rng.integers(len(files)))], rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # damaged lists are passed over with a warning
                found = _found(ImageIndex.open(clip, copy))
        except InputError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            outcomes[f"wrong: {type(error).__name__}: {str(error)[:80]}"] += 1
        else:
            outcomes["the same result" if found in right else "wrong: another result"] += 1
    wrong = sum(number for outcome, number in outcomes.items() if outcome.startswith("wrong"))
    shown = ", ".join(f"{outcome} {number}" for outcome, number in outcomes.most_common())
    promise = "an error that says what to do, or the same result"
    return Row(f"{name} in an index of images", promise, count, count - wrong, shown)


def _found(made: ImageIndex, *, exact: bool = False) -> Found:
    return [made.search(query, 64, exact=exact) for query in QUERIES]


def _flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
