"""The command `tokenize`: images to grids of visual tokens, and a picture of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_beit.beit import BEiT
from ssl_beit.config import STRIDE, DVAEConfig
from ssl_beit.dvae import DVAE, Tokenizer
from ssl_beit.verbs import Tokenize
from ssl_core.config import ConfigError
from ssl_core.device import pick_device
from ssl_core.errors import BadSample, DataError
from ssl_core.method import Recipe, load
from ssl_core.pixels import as_float
from ssl_train.data.files import printable
from ssl_train.data.pictures import save_grid
from ssl_train.data.views import EvalTransform
from ssl_train.log import next_steps, typed
from ssl_train.opened import set_decoding

SHOWN = 16
BATCH = 64


def run(recipe: Recipe, arguments: Tokenize) -> dict[str, Any]:
    """Write ids, paths and a picture: original | tokens as colours | tokens decoded."""
    device = pick_device(arguments.device)
    method = load(recipe.method).from_pretrained(arguments.weights, device=device)
    tokenizer, size = tokenizer_of(method)
    if arguments.size is not None:
        size = (arguments.size, arguments.size)
    if min(size) < STRIDE or any(side % STRIDE for side in size):
        raise ConfigError(f"size = {arguments.size}: must be a multiple of {STRIDE}, the pixels of a token's side")

    # Tokens are those of plain pixels, whatever the encoder's mean and standard deviation.
    channels = method.config.in_channels
    limit = arguments.max_pixels or method.config.max_pixels
    pixels: Any = {"image_size": size, "in_channels": channels, "max_pixels": limit}
    plain = DVAEConfig(**pixels, mean=(0.0,) * channels, std=(1.0,) * channels)
    source = set_decoding(load(recipe.source)(arguments.data, config=plain, split="train"), plain)
    ids, paths, first = tokens_of(tokenizer, images_of(source, EvalTransform(size, 1.0)), device)

    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as stream:  # to a name, numpy would add .npz
        np.savez(stream, ids=ids, paths=np.array(paths))
    sheet = out.with_suffix(".png")
    save_grid(picture(tokenizer, first.to(device)), sheet, titles=("original", "tokens as colours", "decoded"))
    count, h, w = ids.shape
    print(f"{count} grids of {h} x {w} tokens in {out}, a picture of some in {sheet}")
    data = [] if arguments.data is None else ["--data", arguments.data]
    train = ["ssl-beit", "train", *data, "--tokenizer", arguments.weights, "--out", "runs/mine"]
    following = next_steps(typed(*train)) if isinstance(method, DVAE) else []
    return {"file": str(out), "images": count, "grid": [h, w], "picture": str(sheet), "next": following}


def tokenizer_of(method: DVAE | BEiT) -> tuple[Tokenizer, tuple[int, int]]:
    """A method's tokenizer and the size of images that it was trained on; ConfigError if none."""
    if isinstance(method, DVAE):
        return method.average, method.config.size
    return method.required_tokenizer(), method.config.tokenizer_size


def images_of(source: Any, view: EvalTransform) -> Iterator[tuple[str, Tensor]]:
    """(name, image (c, h, w)) of each image of a source; a line names each that cannot be read."""
    for index in range(len(source)):
        try:
            image = view(source.load(index))["views"][0]
        except BadSample as error:
            print(f"left out: {printable(source.name(index))}: {error}")
        else:
            yield source.name(index), image


@torch.inference_mode()
def tokens_of(
    tokenizer: Tokenizer, images: Iterator[tuple[str, Tensor]], device: torch.device
) -> tuple[np.ndarray, list[str], Tensor]:
    """(ids (n, h, w) int32, names, the first images (b, c, h, w)); DataError if there is none."""
    ids, names, first = [], [], torch.empty(0)
    while batch := list(islice(images, BATCH)):
        pixels = torch.stack([image for _, image in batch])  # b c h w
        ids.append(tokenizer.tokenize(pixels.to(device)).int().cpu().numpy())
        names += [name for name, _ in batch]
        first = first if len(first) else pixels[:SHOWN]
    if not ids:
        raise DataError("there is no readable image to tokenize")
    return np.concatenate(ids), names, first


@torch.inference_mode()
def picture(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """(b, 3, c, h, w) in [0, 1]: original, a colour for each token, and the tokens decoded.

    Images are uint8 or uint16 (b, c, h, w).
    """
    ids = tokenizer.tokenize(images)  # b h w
    palette = torch.from_numpy(np.random.default_rng(0).random((tokenizer.vocab, images.shape[1]), np.float32))
    colours = palette.to(ids.device)[ids].permute(0, 3, 1, 2)  # b c h w
    colours = colours.repeat_interleave(STRIDE, 2).repeat_interleave(STRIDE, 3)  # b c 8h 8w
    return torch.stack([as_float(images), colours, tokenizer.decode(ids)], 1)
