"""Figures without labels: how well tokens keep a picture, how well hidden ones are predicted."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ssl_beit.beit import BEiT
from ssl_beit.dvae import DVAE, usage
from ssl_beit.masking import block_mask
from ssl_beit.views import lanczos
from ssl_core.pixels import as_float
from ssl_train.data.pictures import sample_images

MEASURED = 512
"""Pictures that are looked at."""
BATCH = 64


@torch.inference_mode()
def measure_dvae(method: DVAE, source: Any) -> dict[str, Any]:
    """PSNR of decoded tokens, and how much of the vocabulary is used.

    Beside it the PSNR of each picture's mean colour and of JPEG with as many bits, at its least
    quality that takes them. PSNR is in dB by the mean squared error of all pixels.
    """
    images = sample_images(source, method.config, MEASURED).to(next(method.parameters()).device)
    ids = torch.cat([method.tokenize(part) for part in images.split(BATCH)])  # b h w
    decoded = torch.cat([method.decode(part) for part in ids.split(BATCH)])  # b c 8h 8w
    pixels = as_float(images)
    mean_colour = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    vocab, bits = method.config.vocab, ids[0].numel() * math.log2(method.config.vocab)
    used, perplexity = (float(value) for value in usage(ids, vocab))
    reached, floor = psnr(pixels, decoded), psnr(pixels, mean_colour)
    figures = {"psnr": reached, "psnr_mean_colour": floor, "codes_used": used, "perplexity": perplexity, "bits": bits}
    beside = f"mean colour {floor:.1f}"
    if images.shape[1] in (1, 3):  # as JPEG has them
        found, taken, quality = jpeg(images, bits)
        figures |= {"psnr_jpeg": found, "bits_jpeg": taken, "quality_jpeg": quality}
        beside += f", JPEG {found:.1f} at {taken:.0f} bits"
    kept = f"tokens decoded: PSNR {reached:.1f} dB at {bits:.0f} bits a picture ({beside})"
    of = f"{used:.0%} of {vocab} tokens used by {len(images)} pictures, perplexity {perplexity:.0f}"
    return {**figures, "summary": [kept, f"vocabulary: {of}"]}


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], by the mean squared error of all."""
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-12))


def jpeg(images: Tensor, bits: float) -> tuple[float, float, int]:
    """(PSNR in dB, bits a picture, quality) of JPEG at the least quality that takes `bits` or more.

    Images are uint8 or uint16 (b, c, h, w) of one or three channels, reduced to JPEG's 8 bits. If
    even quality 1 takes more bits, its figures are returned. All pictures are one sheet, so that
    they share the file's header and tables.
    """
    # Whole rows of pictures, as one image (h, w, c).
    columns = math.isqrt(len(images))
    images = as_float(images[: columns * (len(images) // columns)].cpu()).mul(255).round().to(torch.uint8)
    sheet = np.ascontiguousarray(rearrange(images, "(r k) c h w -> (r h) (k w) c", k=columns).numpy())
    picture = Image.fromarray(sheet if sheet.shape[2] == 3 else sheet[..., 0])
    buffer, spent, quality = io.BytesIO(), 0.0, 0
    while spent < bits and quality < 95:
        quality += 1
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        spent = 8 * buffer.tell() / len(images)
    back = np.array(Image.open(buffer)).reshape(sheet.shape)
    return psnr(torch.from_numpy(sheet) / 255, torch.from_numpy(back) / 255), spent, quality


@torch.inference_mode()
def measure_beit(method: BEiT, source: Any) -> dict[str, Any]:
    """Share of hidden tokens predicted right, and what the most frequent one would reach.

    Nothing but a line for the terminal if there is no tokenizer.
    """
    if method.tokenizer is None:
        return {"summary": ["the weights hold no tokenizer: predictions were not measured"]}
    images = sample_images(source, method.config, MEASURED).to(next(method.parameters()).device)
    hidden = masks(method, len(images)).to(images.device)  # b n
    guesses, tokens = [], []
    for part, hide in zip(images.split(BATCH), hidden.split(BATCH), strict=True):
        guesses.append(method.logits(part, hide).argmax(-1)[hide])  # hidden patches alone
        tokens.append(method.tokenize(small(method, part)).flatten(1)[hide])
    truth = torch.cat(tokens)
    accuracy = float((torch.cat(guesses) == truth).float().mean())
    frequent = float(truth.bincount().max()) / len(truth)
    summary = f"hidden tokens predicted: {accuracy:.1%} right (the most frequent one: {frequent:.1%})"
    return {"accuracy": accuracy, "most_frequent": frequent, "summary": [summary]}


def masks(method: BEiT, count: int) -> Tensor:
    """Block masks (count, n) bool as the method draws them, always the same."""
    config, rng = method.config, np.random.default_rng(0)
    h, w = config.grid
    drawn = [block_mask(h, w, config.mask_patches, rng, smallest=config.mask_block) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).flatten(1)


def small(method: BEiT, images: Tensor) -> Tensor:
    """The tokenizer's view of uint8 images."""
    return torch.stack([lanczos(image, *method.config.tokenizer_size) for image in images.cpu()]).to(images.device)
