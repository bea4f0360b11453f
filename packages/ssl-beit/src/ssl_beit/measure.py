"""Figures that need no labels: how well tokens keep a picture, and how well hidden ones are predicted."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ssl_beit.beit import BEiT, masked_first
from ssl_beit.dvae import DVAE, usage
from ssl_beit.views import block_mask, lanczos
from ssl_core.pixels import as_float
from ssl_train.data.pictures import sample_images

MEASURED = 512
"""Pictures that are looked at."""


@torch.inference_mode()
def measure_dvae(method: DVAE, source: Any) -> dict[str, Any]:
    """PSNR of decoded tokens beside that of each picture's mean colour and of JPEG, and how much of the vocabulary is used.

    PSNR in dB by the mean squared error of all pixels, bits per picture; JPEG has the least quality that takes as many
    bits or, where none takes so few, quality 1 with the bits that it takes.
    """
    images = sample_images(source, method.config, MEASURED).to(next(method.parameters()).device)
    ids = torch.cat([method.tokenize(part) for part in images.split(64)])
    decoded = torch.cat([method.decode(part) for part in ids.split(64)])
    pixels = as_float(images)
    used, perplexity = usage(ids, method.config.vocab)
    figures: dict[str, Any] = {
        "psnr": psnr(pixels, decoded),
        "psnr_mean_colour": psnr(pixels, pixels.mean((2, 3), keepdim=True).expand_as(pixels)),
        "codes_used": float(used),
        "perplexity": float(perplexity),
        "bits": ids[0].numel() * math.log2(method.config.vocab),
    }
    beside = f"mean colour {figures['psnr_mean_colour']:.1f}"
    if images.shape[1] in (1, 3):
        found, bits, quality = jpeg(images, figures["bits"])
        figures |= {"psnr_jpeg": found, "bits_jpeg": bits, "quality_jpeg": quality}
        beside += f", JPEG {found:.1f} at {bits:.0f} bits"
    figures["summary"] = [
        f"tokens decoded: PSNR {figures['psnr']:.1f} dB at {figures['bits']:.0f} bits a picture ({beside})",
        f"vocabulary: {figures['codes_used']:.0%} of {method.config.vocab} tokens used by {len(images)} pictures, "
        f"perplexity {figures['perplexity']:.0f}",
    ]
    return figures


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], by the mean squared error of all of them."""
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-12))


def jpeg(images: Tensor, bits: float) -> tuple[float, float, int]:
    """(PSNR in dB, bits per picture, quality) of JPEG at the least quality that takes `bits` per picture or more.

    uint8 or uint16 (b, c, h, w) of one or three channels, in 8 bits as JPEG has them. All pictures are one sheet, so that
    they share the file's header and tables.
    """
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
    """Share of hidden tokens predicted right, and what the most frequent one would reach; nothing without a tokenizer."""
    if method.tokenizer is None:
        return {"summary": ["the weights hold no tokenizer: predictions were not measured"]}
    images = sample_images(source, method.config, MEASURED).to(next(method.parameters()).device)
    hits, truths = [], []
    for part, hide in zip(images.split(64), masks(method, len(images)).to(images.device).split(64), strict=True):
        tokens = method.tokenize(small(method, part)).flatten(1)
        ids, weight = masked_first(hide, method.config.mask_patches)
        guesses, chosen = (x.gather(1, ids)[weight > 0] for x in (method.logits(part, hide).argmax(-1), tokens))
        hits.append(guesses == chosen)
        truths.append(chosen)
    truth = torch.cat(truths)
    accuracy, frequent = float(torch.cat(hits).float().mean()), float(truth.bincount().max()) / len(truth)
    return {
        "accuracy": accuracy,
        "most_frequent": frequent,
        "summary": [f"hidden tokens predicted: {accuracy:.1%} right (the most frequent one: {frequent:.1%})"],
    }


def masks(method: BEiT, count: int) -> Tensor:
    """Block masks (count, n) bool of the method's law, always the same."""
    config, rng = method.config, np.random.default_rng(0)
    h, w = config.grid
    drawn = [block_mask(h, w, config.mask_patches, rng, smallest=config.mask_block) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).flatten(1)


def small(method: BEiT, images: Tensor) -> Tensor:
    """The tokenizer's view of uint8 images."""
    return torch.stack([lanczos(image, *method.config.tokenizer_size) for image in images.cpu()]).to(images.device)
