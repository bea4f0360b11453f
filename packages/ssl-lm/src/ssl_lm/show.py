"""Pictures of a language model: what it looks at, and what it writes in its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ssl_core.device import seed_step
from ssl_core.hub.weights_file import load_weights
from ssl_lm.measure import samples
from ssl_train.data.pictures import LINE, font

TOKENS, SIDE = 24, 264
"""Tokens in the attention picture, and pixels of a head's square."""
NAME = 10
"""Characters of a token's name."""
WORDS = 120
"""Tokens of a sample."""
LINES, COLUMNS = 14, 100
"""Lines of a sample, and characters of a line in the picture: longer lines are broken."""
CELL = 8
"""Pixels of a character in that picture: with a cell for each, columns stay columns."""


def show(method: Any, source: Any, folder: Path) -> dict[str, str]:
    """Write attention.png and, if the model writes, samples.png and .txt; {file name: caption}."""
    captions = {}
    if hasattr(method, "attention_maps"):
        length = min(TOKENS, method.config.context)
        tokens = source.load(0)["input_ids"][None, :length].to(next(method.parameters()).device)
        names = token_names(method, tokens[0].tolist())
        save_attention(method.attention_maps(tokens)[:, 0], folder / "attention.png", names)
        captions["attention.png"] = (
            f"attention of every head (columns) in every block (rows) on {tokens.shape[1]} held-out tokens, named on the "
            "left: a row of a square is where its token looks, black is all of it"
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


def token_names(method: Any, ids: list[int]) -> list[str]:
    """The tokens as text, or their numbers if the model has no tokenizer."""
    if method.tokenizer is None:
        return [str(i) for i in ids]
    texts = [method.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    return [repr(text)[1:-1].replace(" ", "·")[:NAME] or str(i) for text, i in zip(texts, ids, strict=True)]


def save_attention(maps: Tensor, path: Path, names: Sequence[str] = (), gap: int = 12) -> None:
    """Write attention (depth, h, t, t) as squares of grey, one row per block.

    Each square is headed by its block and head, and its rows by the tokens `names` (t). Grey is √p,
    so that small values are seen too.
    """
    depth, heads, t, _ = maps.shape
    zoom = max(1, SIDE // t)
    # black is all of the attention, white none
    grey = (255 * (1 - maps.float().cpu().clamp(0, 1).sqrt())).round().to(torch.uint8)  # l h t t
    grey = grey.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)

    # The names stand left of the first head's squares.
    small, left, side = font(10), (7 * max(map(len, names), default=0)), t * zoom
    sheet = Image.new("L", (left + heads * (side + gap), depth * (side + LINE + gap)), 255)
    pen = ImageDraw.Draw(sheet)
    for block in range(depth):
        y = block * (side + LINE + gap) + LINE
        for row, name in enumerate(names):
            pen.text((left - 3, y + row * zoom + zoom // 2), name, fill=0, font=small, anchor="rm")
        for head in range(heads):
            x = left + head * (side + gap)
            pen.text((x, y - LINE), f"block {block}, head {head}", fill=0, font=font())
            sheet.paste(Image.fromarray(grey[block, head].numpy()), (x, y))
            pen.rectangle([x - 1, y - 1, x + side, y + side], outline=200)
    sheet.save(path)


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
    """Write text as a picture, black on white, every character in a cell of its own."""
    lines = [
        line[start : start + COLUMNS]
        for line in (line.expandtabs(4) for line in text.splitlines())
        for start in range(0, max(1, len(line)), COLUMNS)
    ]
    sheet = Image.new("L", (max(200, CELL * max(map(len, lines)) + 24), 20 * len(lines) + 24), 255)
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            # Drawn in its own width, and squeezed into the cell if it is wider.
            glyph = Image.new("L", (max(CELL, math.ceil(font(14).getlength(letter))), 20), 255)
            ImageDraw.Draw(glyph).text((glyph.width / 2, 15), letter, fill=0, font=font(14), anchor="ms")
            sheet.paste(glyph.resize((CELL, 20)), (12 + CELL * column, 12 + 20 * row))
    sheet.save(path)
