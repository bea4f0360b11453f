"""Pictures of a language model: what it looks at, and what it writes in its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssl_core.device import seed_step
from ssl_core.hub.weights_file import load_weights
from ssl_lm.measure import samples

TOKENS, SIDE = 48, 192
"""Tokens in the attention picture, and pixels of a head's square."""
WORDS = 120
"""Tokens of a sample."""
LINES, COLUMNS = 14, 100
"""Lines of a sample, and characters of a line in the picture."""


def show(method: Any, source: Any, folder: Path) -> dict[str, str]:
    """Write attention.png and, if the model writes, samples.png and .txt; {file name: caption}."""
    captions = {}
    if hasattr(method, "attention_maps"):
        length = min(TOKENS, method.config.context)
        tokens = source.load(0)["input_ids"][None, :length].to(next(method.parameters()).device)
        save_attention(method.attention_maps(tokens)[:, 0], folder / "attention.png")
        captions["attention.png"] = (
            f"attention of every head (columns) in every block (rows, the first on top) on {tokens.shape[1]} held-out "
            "tokens: row i of a square is where token i looks, black is all of it"
        )
    if hasattr(method, "stream") and method.tokenizer is not None:
        written = samples_over_training(method, folder.resolve().parent)
        text = "\n\n".join(f"--- {when}\n{sample}" for when, sample in written.items()) + "\n"
        (folder / "samples.txt").write_text(text, encoding="utf-8")
        save_text(text, folder / "samples.png")
        captions["samples.png"] = (
            f"what the model writes from nothing: {', '.join(written)} (temperature 0.8, top-p 0.95)"
        )
    return captions


def save_attention(maps: Tensor, path: Path, gap: int = 4) -> None:
    """Write attention (depth, h, t, t) as squares of grey, one row per block.

    Grey is √p, so that small values are seen too.
    """
    zoom = max(1, SIDE // maps.shape[-1])
    # black is all of the attention, white none
    grey = (255 * (1 - maps.float().cpu().clamp(0, 1).sqrt())).round().to(torch.uint8)
    grey = grey.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    sheet = rearrange(F.pad(grey, (0, gap, 0, gap), value=200), "l h y x -> (l y) (h x)")
    Image.fromarray(np.ascontiguousarray(sheet.numpy())).save(path)


def samples_over_training(method: Any, run: Path) -> dict[str, str]:
    """What the same seed writes before training, at every checkpoint in `run`, and now."""
    # the weights before training, drawn again from the run's seed
    seed_step(method.config.seed)
    model = type(method)(method.config).to(next(method.parameters()).device).eval()
    model.tokenizer = method.tokenizer
    written = {"before training": samples(model, 1, WORDS)[0]}
    for file in sorted(run.glob("checkpoints/step-*/model.safetensors"))[:-1]:
        model.load_state_dict(load_weights(file))
        written[f"after step {int(file.parent.name.removeprefix('step-')):,}"] = samples(model, 1, WORDS)[0]
    written["trained"] = samples(method, 1, WORDS)[0]
    return {when: "\n".join(text.strip("\n").splitlines()[:LINES]) for when, text in written.items()}


def save_text(text: str, path: Path) -> None:
    """Write text as a picture, black on white."""
    lines = [line.expandtabs(4)[:COLUMNS] for line in text.splitlines()]
    font = ImageFont.load_default(14)
    width = max(round(font.getlength(line)) for line in lines) + 24
    sheet = Image.new("L", (max(200, width), 20 * len(lines) + 24), 255)
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        draw.text((12, 12 + 20 * row), line, fill=0, font=font)
    sheet.save(path)
