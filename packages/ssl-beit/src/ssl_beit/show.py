"""Pictures of what the tokenizer keeps, and of what BEiT makes of hidden patches."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ssl_beit.beit import BEiT, masked_first
from ssl_beit.dvae import DVAE, usage
from ssl_beit.views import block_mask, lanczos
from ssl_core.patches import patchify, unpatchify
from ssl_core.pictures import sample_images, save_grid

SHOWN, MEASURED = 16, 512
GREY = 0.5


def show_dvae(method: DVAE, source: Any, folder: Path) -> dict[str, str]:
    """Write reconstructions.png (original | decoded tokens) and return {file name: caption with the measurements}."""
    images = sample_images(source, method.config, MEASURED).to(next(method.parameters()).device)
    pairs = torch.stack([images[:SHOWN] / 255, method.decode(method.tokenize(images[:SHOWN]))], 1)
    save_grid(pairs, folder / "reconstructions.png")
    figures = measure_tokenizer(method, images)
    return {
        "reconstructions.png": f"original | {figures['bits']:.0f} bits of tokens decoded: PSNR {figures['psnr']:.1f} dB, "
        f"the mean colour {figures['psnr_mean_colour']:.1f} dB; {figures['codes_used']:.0%} of {method.config.vocab} "
        f"tokens used by {len(images)} pictures, perplexity {figures['perplexity']:.0f}"
    }


def show_beit(method: BEiT, source: Any, folder: Path) -> dict[str, str]:
    """Write predictions.png (original | masked | tokens decoded) and return {file name: caption with the accuracy}.

    Decoded are the tokenizer's own tokens where a patch is seen and the predicted ones where it is hidden. Weights
    without a tokenizer or a head have nothing to show, and say so in the caption of the original and masked images.
    """
    images = sample_images(source, method.config, MEASURED).to(next(method.parameters()).device)
    mask = masks(method, len(images)).to(images.device)
    if method.tokenizer is None:
        save_grid(hidden(method, images[:SHOWN], mask[:SHOWN]), folder / "masked.png")
        return {"masked.png": "original | masked; the weights hold no tokenizer that could decode a prediction"}
    save_grid(predictions(method, images[:SHOWN], mask[:SHOWN]), folder / "predictions.png")
    accuracy, frequent = measure_predictions(method, images, mask)
    return {
        "predictions.png": f"original | masked | tokens decoded; {accuracy:.1%} of hidden tokens are right, the most "
        f"frequent one would be {frequent:.1%}, on {len(images)} pictures"
    }


def measure_tokenizer(method: DVAE, images: Tensor) -> dict[str, float]:
    """PSNR of decoded tokens, of the mean colour, share of the vocabulary in use, perplexity, bits, for uint8 images.

    All in dB, bits per picture and shares; the mean colour is each picture's own.
    """
    ids = torch.cat([method.tokenize(part) for part in images.split(64)])
    decoded = torch.cat([method.decode(part) for part in ids.split(64)])
    pixels = images / 255
    used, perplexity = usage(ids, method.config.vocab)
    return {
        "psnr": psnr(pixels, decoded),
        "psnr_mean_colour": psnr(pixels, pixels.mean((2, 3), keepdim=True).expand_as(pixels)),
        "codes_used": float(used),
        "perplexity": float(perplexity),
        "bits": ids[0].numel() * math.log2(method.config.vocab),
    }


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], by the mean squared error of all of them."""
    return -10 * math.log10(float((a - b).square().mean()))


def jpeg(images: Tensor, bits: float) -> tuple[float, float, int]:
    """(PSNR in dB, bits per picture, quality) of JPEG at the least quality that takes `bits` per picture or more.

    uint8 (b, c, h, w). All pictures are one sheet, so that they share the file's header and tables.
    """
    columns = math.isqrt(len(images))
    images = images[: columns * (len(images) // columns)].cpu()
    sheet = np.ascontiguousarray(rearrange(images, "(r k) c h w -> (r h) (k w) c", k=columns).numpy())
    picture = Image.fromarray(sheet if sheet.shape[2] == 3 else sheet[..., 0])
    for quality in range(1, 96):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        spent = 8 * buffer.tell() / len(images)
        if spent >= bits:
            break
    back = torch.from_numpy(np.array(Image.open(buffer))).view(*sheet.shape[:2], -1)
    original = torch.from_numpy(sheet[..., : back.shape[2]])
    return psnr(original / 255, back / 255), spent, quality


def masks(method: BEiT, count: int, seed: int = 0) -> Tensor:
    """Block masks (count, n) bool of the method's law, fixed by the seed."""
    config, rng = method.config, np.random.default_rng(seed)
    drawn = [block_mask(*config.grid, config.mask_patches, rng, smallest=config.mask_block) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).flatten(1)


def hidden(method: BEiT, images: Tensor, mask: Tensor) -> Tensor:
    """(b, 2, c, h, w) in [0, 1]: original and masked, for uint8 images (b, c, h, w)."""
    p, original = method.config.patch_size, images / 255
    grey = torch.where(mask[..., None], GREY, patchify(original, p))
    return torch.stack([original, unpatchify(grey, p, method.config.grid)], 1)


def predictions(method: BEiT, images: Tensor, mask: Tensor) -> Tensor:
    """(b, 3, c, h, w) in [0, 1]: original, masked, and the tokens decoded, the hidden ones as predicted."""
    tokens = method.tokenize(small(method, images))
    guesses = method.logits(images, mask).argmax(-1).view_as(tokens)
    decoded = method.decode(torch.where(mask.view_as(tokens), guesses, tokens))
    decoded = torch.nn.functional.interpolate(decoded, images.shape[-2:])
    return torch.cat([hidden(method, images, mask), decoded[:, None]], 1)


def measure_predictions(method: BEiT, images: Tensor, mask: Tensor) -> tuple[float, float]:
    """(share of hidden tokens that are predicted right, share of the most frequent one among them)."""
    hits, truths = [], []
    for part, hide in zip(images.split(64), mask.split(64), strict=True):
        tokens = method.tokenize(small(method, part)).flatten(1)
        ids, weight = masked_first(hide, method.config.mask_patches)
        guesses, chosen = (x.gather(1, ids)[weight > 0] for x in (method.logits(part, hide).argmax(-1), tokens))
        hits.append(guesses == chosen)
        truths.append(chosen)
    frequent = torch.cat(truths).bincount().max() / sum(map(len, truths))
    return float(torch.cat(hits).float().mean()), float(frequent)


def small(method: BEiT, images: Tensor) -> Tensor:
    """The tokenizer's view of uint8 images."""
    return torch.stack([lanczos(image, *method.config.tokenizer_size) for image in images.cpu()]).to(images.device)
