"""Figures: pairs of views, nearest neighbours, and a map of all images by their features."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_contrastive.loss import unit
from ssl_contrastive.views import build
from ssl_core.errors import DataError
from ssl_core.pixels import as_float
from ssl_train.data.pictures import apart, rgb, sample_images, save_grid
from ssl_train.data.readable import readable

PAIRS, QUERIES, NEIGHBOURS = 16, 8, 6
MAPPED = 400
"""Images on the map; the neighbours are found among them."""


def show(method: Any, source: Any, folder: Path) -> dict[str, str]:
    """Write views.png, neighbours.png and map.png, and return {file name: caption}."""
    save_grid(view_pairs(method, source), folder / "views.png", columns=4, titles=("view 1", "view 2"))

    # The other two figures show the same images.
    images = sample_images(source, method.config, MAPPED)
    if len(images) < 2:
        raise DataError("neighbours and a map need two readable images or more")
    features = encode(method, images)  # b d
    shown = as_float(images)

    # An image is not its own neighbour, so there is one neighbour less than images.
    near = neighbours(features, min(QUERIES, len(images) - 1), min(NEIGHBOURS, len(images) - 1))
    titles = ("query", *(f"nearest {i}" for i in range(1, near.shape[1])))
    save_grid(shown[near], folder / "neighbours.png", columns=1, titles=titles)

    places, how = flat(features)
    draw_map(shown, places).save(folder / "map.png")
    return {
        "views.png": "two views of an image, as the network is trained on them",
        "neighbours.png": f"left: a query; then its nearest of {len(images)} images, by the cosine of their features",
        "map.png": f"{len(images)} images where {how} of their features puts them, moved apart to the nearest free cell",
    }


def view_pairs(method: Any, source: Any) -> Tensor:
    """(b, 2, c, h, w) in [0, 1]: two random views each of a few images.

    Raises DataError when no image is readable.
    """
    view = build(method.config)
    pairs = [
        torch.stack(view(sample, np.random.default_rng((0, index)))["views"])
        for index, sample in readable(source, PAIRS)
    ]
    return as_float(torch.stack(pairs))


def encode(method: Any, images: Tensor) -> Tensor:
    """Features (b, d) of uint8 images, on the CPU."""
    device = next(method.parameters()).device
    return torch.cat([method.encode(part.to(device)).float().cpu() for part in images.split(64)])


def neighbours(features: Tensor, queries: int, count: int) -> Tensor:
    """(q, 1 + k): each of the first q = `queries` rows, then its k = `count` nearest by cosine."""
    z = unit(features)  # b d
    like = z[:queries] @ z.T  # q b
    like[torch.arange(queries), torch.arange(queries)] = -torch.inf
    return torch.cat([torch.arange(queries)[:, None], like.topk(count).indices], 1)


def flat(features: Tensor) -> tuple[np.ndarray, str]:
    """Places (b, 2) in [0, 1] and how they were found.

    By t-SNE if scikit-learn is installed, otherwise by the first two principal components.
    """
    z = unit(features)  # b d
    installed = find_spec("sklearn") is not None
    if installed and len(z) > 10:
        from sklearn.manifold import TSNE

        # The perplexity has to be smaller than the number of images.
        perplexity = min(30.0, (len(z) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=0, metric="cosine").fit_transform(z.numpy())
        how = "t-SNE"
    else:
        # The right singular vectors of centred features are their principal components.
        centred = z - z.mean(0)
        places = (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T).numpy()
        how = "the first two principal components"
        how += "" if installed else ' (t-SNE with `pip install "ssl-contrastive[viz]"`)'
    low, high = places.min(0), places.max(0)
    return (places - low) / np.maximum(high - low, 1e-12), how


def draw_map(images: Tensor, places: np.ndarray, side: int = 1000, thumbnail: int = 36) -> Image.Image:
    """Thumbnails of (b, c, h, w) in [0, 1] on white near `places` (b, 2).

    Each lies in a cell of a grid, so that none hides another. Raises ValueError for more images
    than cells.
    """
    cells = apart(places, side // thumbnail, side // thumbnail)
    sheet = Image.new("RGB", (side, side), "white")
    pixels = rgb((images * 255).round().to(torch.uint8))
    for picture, (x, y) in zip(pixels.permute(0, 2, 3, 1).contiguous().numpy(), cells.tolist(), strict=True):
        small = Image.fromarray(picture).resize((thumbnail, thumbnail))
        sheet.paste(small, (x * thumbnail, y * thumbnail))
    return sheet
