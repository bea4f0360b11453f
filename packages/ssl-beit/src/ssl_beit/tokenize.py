"""The command `tokenize`: images to grids of visual tokens, and a picture of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_beit.beit import BEiT
from ssl_beit.config import DVAEConfig
from ssl_beit.dvae import DVAE, Tokenizer
from ssl_beit.verbs import Tokenize
from ssl_core.config import ConfigError
from ssl_core.device import pick_device
from ssl_core.errors import BadSample, DataError
from ssl_core.method import Recipe, load
from ssl_core.pixels import as_float
from ssl_train.data.pictures import save_grid
from ssl_train.data.views import EvalTransform

SHOWN = 16
BATCH = 64


def tokenize(recipe: Recipe, args: Tokenize) -> None:
    """Write ids, paths and a picture: original | tokens as colours | tokens decoded."""
    device = pick_device(args.device)
    method = load(recipe.method).from_pretrained(args.weights, device=device)
    tokenizer, size = tokenizer_of(method)
    if args.size is not None:
        size = (args.size, args.size)
    if min(size) < 8 or any(side % 8 for side in size):
        raise ConfigError(f"size = {args.size}: must be a multiple of 8, the pixels of a token's side")
    channels = method.config.in_channels
    pixels = DVAEConfig(image_size=size, in_channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    source = load(recipe.source)(args.data, config=pixels, split="train")
    ids, paths, originals = read(tokenizer, source, EvalTransform(size, 1.0), device)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as stream:  # by a name numpy would add .npz to it
        np.savez(stream, ids=ids, paths=np.array(paths))
    save_grid(picture(tokenizer, originals.to(device)), out.with_suffix(".png"))
    print(
        f"{len(ids)} grids of {ids.shape[1]} x {ids.shape[2]} tokens in {out}, a picture of some in {out.with_suffix('.png')}"
    )


def tokenizer_of(method: DVAE | BEiT) -> tuple[Tokenizer, tuple[int, int]]:
    """The tokenizer of either method and the size of the images that it was trained on. ConfigError without one."""
    if isinstance(method, DVAE):
        return method.average, method.config.size
    if method.tokenizer is None:
        raise ConfigError("tokenizer_hidden = 0: these weights hold no tokenizer")
    return method.tokenizer, method.config.tokenizer_size


@torch.inference_mode()
def read(tokenizer: Tokenizer, source: Any, view: Any, device: torch.device) -> tuple[np.ndarray, list[str], Tensor]:
    """(ids (n, h, w) int32, names, the first images) of a source; unreadable images are left out and named."""
    ids: list[np.ndarray] = []
    paths: list[str] = []
    first: list[Tensor] = []
    waiting: list[Tensor] = []

    def flush() -> None:
        if waiting:
            ids.append(tokenizer.tokenize(torch.stack(waiting).to(device)).int().cpu().numpy())
            waiting.clear()

    for index in range(len(source)):
        try:
            image = view(source.load(index))["views"][0]
        except BadSample as error:
            print(f"left out: {source.name(index)}: {error}")
            continue
        waiting.append(image)
        paths.append(source.name(index))
        if len(first) < SHOWN:
            first.append(image)
        if len(waiting) == BATCH:
            flush()
    flush()
    if not ids:
        raise DataError("there is no readable image to tokenize")
    return np.concatenate(ids), paths, torch.stack(first)


@torch.inference_mode()
def picture(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """(b, 3, c, h, w) in [0, 1]: original, a colour for each token, and the tokens decoded, for uint8 or uint16 (b, c, h, w)."""
    ids = tokenizer.tokenize(images)
    palette = torch.from_numpy(np.random.default_rng(0).random((tokenizer.vocab, images.shape[1]), np.float32))
    colours = palette.to(ids.device)[ids].permute(0, 3, 1, 2)  # b c h w
    colours = colours.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return torch.stack([as_float(images), colours, tokenizer.decode(ids)], 1)
