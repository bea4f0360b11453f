"""What a model card tells people to run is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssl_core.hub.card import write_card
from ssl_core.hub.layout import layout_of
from ssl_core.method import Recipe, load
from ssl_core.pixels import normalize
from ssl_train.cli.main import main


def check_card(method: Any, recipe: Recipe, inputs: Tensor, folder: Path) -> None:
    """The card of `method` loads it in three lines, and each call of another library that it names
    works. A pipeline of features and timm's network give those of `encode` within 1e-5.

    Runs in the working directory, below which the card's commands write.
    """
    layout = layout_of(method)
    card = write_card(method.save_pretrained(folder), name=str(folder), layout=layout).read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    cls, scope = type(method), dict[str, Any]({layout.inputs[0]: inputs})
    if not all(part.isidentifier() for part in cls.__module__.split(".")):  # a test file's own method
        code, scope[cls.__name__] = code.replace(f"from {cls.__module__} import {cls.__name__}\n", ""), cls
    with torch.inference_mode():
        expected = method.eval().encode(inputs)
        exec(code, scope)  # noqa: S102 - the card that was just written
        assert torch.equal(scope["features"], expected), f"the card's lines give other features:\n{code}"
        for command in re.findall(r"`ssl-\w+ (export [^`]+)`", card):
            assert main({recipe.name: recipe}, command.split()) == 0, command
        for call in re.findall(r"`((?:pipeline|timm\.create_model|AutoModel\.from_pretrained)\([^`]+)`", card):
            if call.startswith("timm"):
                timm = pytest.importorskip("timm")
                pixels = normalize(inputs, method.config.mean, method.config.std)
                found = eval(call.replace("hf-hub:", "local-dir:"), {"timm": timm, "pixels": pixels})  # noqa: S307
            elif call.startswith("pipeline"):
                picture, expected = _picture(method, recipe)
                found = eval(call, {"pipeline": pytest.importorskip("transformers").pipeline, "picture": picture})  # noqa: S307
            else:
                eval(call, {"AutoModel": pytest.importorskip("transformers").AutoModel})  # noqa: S307
                continue
            # of the largest feature, where that is above 1: random weights may give any size
            gap = ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
            assert gap <= 1e-5, f"{call} gives other features than encode: {gap:.2g}"


def _picture(method: Any, recipe: Recipe) -> tuple[Image.Image, Tensor]:
    """A picture that evaluations crop and do not resize, and its features."""
    config = method.config
    sides = [int(min(config.size) / config.crop_pct)] * 2
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, config.in_channels), dtype=np.uint8)
    view = load(recipe.eval_view)(config)({"image": torch.from_numpy(pixels).permute(2, 0, 1)}, None)["views"][0]
    return Image.fromarray(pixels), method.encode(view[None])
