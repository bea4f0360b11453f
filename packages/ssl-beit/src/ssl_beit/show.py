"""Pictures of what tokens keep, and of what BEiT makes of hidden patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_beit.beit import BEiT
from ssl_beit.dvae import DVAE
from ssl_beit.measure import masks, small
from ssl_core.patches import patchify, unpatchify
from ssl_core.pixels import as_float
from ssl_train.data.pictures import sample_images, save_grid

SHOWN = 16
GREY = 0.5


def show_dvae(method: DVAE, source: Any, folder: Path) -> dict[str, str]:
    """Write reconstructions.png (original | tokens decoded) and return {file name: caption}."""
    images = sample_images(source, method.config, SHOWN).to(next(method.parameters()).device)
    ids = method.tokenize(images)
    pairs = torch.stack([as_float(images), method.decode(ids)], 1)  # b 2 c h w
    save_grid(pairs, folder / "reconstructions.png", titles=("original", "tokens decoded"))
    return {"reconstructions.png": f"original | its {ids[0].numel()} tokens decoded"}


def show_beit(method: BEiT, source: Any, folder: Path) -> dict[str, str]:
    """Write predictions.png (original | masked | tokens decoded) and return {file name: caption}.

    Decoded are the tokenizer's own tokens where a patch is seen, and the predicted ones where it is
    hidden. Weights without a tokenizer give masked.png, without the third picture.
    """
    images = sample_images(source, method.config, SHOWN).to(next(method.parameters()).device)
    if not method.config.vocab:
        save_grid(as_float(images[:, None]), folder / "originals.png")
        return {"originals.png": "originals; the weights are an encoder alone, which predicts nothing"}
    mask = masks(method, len(images)).to(images.device)
    if method.tokenizer is None:
        save_grid(hidden(method, images, mask), folder / "masked.png", titles=("original", "masked"))
        return {"masked.png": "original | masked; the weights hold no tokenizer that could decode a prediction"}
    titles = ("original", "masked", "tokens decoded")
    save_grid(predictions(method, images, mask), folder / "predictions.png", titles=titles)
    return {"predictions.png": "original | masked | tokens decoded, those of hidden patches as predicted"}


def hidden(method: BEiT, images: Tensor, mask: Tensor) -> Tensor:
    """(b, 2, c, h, w) in [0, 1]: original and masked, for uint8 images (b, c, h, w)."""
    p, original = method.config.patch_size, as_float(images)
    grey = torch.where(mask[..., None], GREY, patchify(original, p))  # b n p·p·c
    return torch.stack([original, unpatchify(grey, p, method.config.grid)], 1)


def predictions(method: BEiT, images: Tensor, mask: Tensor) -> Tensor:
    """(b, 3, c, h, w) in [0, 1]: original, masked, tokens decoded, the hidden ones as predicted."""
    tokens = method.tokenize(small(method, images))  # b h w
    guesses = method.logits(images, mask).argmax(-1).view_as(tokens)  # b h w
    decoded = method.decode(torch.where(mask.view_as(tokens), guesses, tokens))
    # A token is 8 pixels wide; a patch of the encoder may be wider.
    decoded = torch.nn.functional.interpolate(decoded, images.shape[-2:])
    return torch.cat([hidden(method, images, mask), decoded[:, None]], 1)
