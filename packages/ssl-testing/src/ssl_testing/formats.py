"""Folders of released formats, which every later version reads with the same features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_core.hub.format import SECTION, written_by
from ssl_core.hub.layout import CONFIG, read_json
from ssl_core.hub.weights_file import write_json

FEATURES = "features.json"
"""what the release made of the inputs, beside its weights"""


def check_released(formats: Path, name: str, method: Any, inputs: Tensor) -> None:
    """Every folder `formats`/`name`-… loads as the class of `method` and has its features of
    `inputs`, within 1e-5; the one of today's format states today's fields.

    A missing folder of today's format is written from `method`, and the test fails once. Skips when
    there is no folder `formats`: no release was made.
    """
    if not formats.is_dir():
        pytest.skip(f"nothing is released: make the folder {formats} with the first release")
    cls, config_class = type(method), type(method.config)
    now = written_by(config_class)
    numbers = "-".join(f"{package.removeprefix('ssl-')}-{now[package]['format']}" for package in sorted(now))
    today = formats / f"{name}.{numbers}"
    with torch.inference_mode():
        if not today.exists():
            features = method.eval().encode(inputs).tolist()
            write_json(method.save_pretrained(today) / FEATURES, {"features": features})
            pytest.fail(f"{today} was missing and is now written: commit it with the release of this format")
        for folder in sorted(formats.glob(f"{name}.*")):
            features = torch.tensor(read_json(folder / FEATURES)["features"])
            gap = (cls.from_pretrained(folder).encode(inputs) - features).abs().max().item()
            assert gap <= 1e-5, f"{folder} has other features than the version that wrote it had: {gap:.2g}"
    released = _fields(read_json(today / CONFIG)[SECTION]["written_by"])
    assert _fields(now) == released, (
        f"{config_class.__name__} has not the fields of {today}: {sorted(_fields(now) ^ released)} differ. "
        "State the next format in FORMATS; if this one is not released yet, delete the folder and test again"
    )


def _fields(writers: dict[str, Any]) -> set[tuple[str, str, str]]:
    """(package, format, field) of every field."""
    tables = [(package, *table) for package, by in writers.items() for table in by["defaults"].items()]
    return {(package, number, name) for package, number, fields in tables for name in fields}
