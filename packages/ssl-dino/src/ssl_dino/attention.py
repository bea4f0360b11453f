"""`ssl-dino attention`: what a ViT attends to in pictures, their patch features as colours, and
which patches of two pictures correspond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ssl_core.device import pick_device
from ssl_core.errors import BadSample, InputError
from ssl_core.method import Recipe, load
from ssl_core.pixels import as_float
from ssl_dino.maps import correspondences, heat, mass_mask, overlay, pca_colours
from ssl_dino.verbs import Attention
from ssl_train.data import images
from ssl_train.data.pictures import rgb, save_grid
from ssl_train.data.views import resize

LARGEST = 480
"""Pixels of the shorter side in the authors' `visualize_attention.py`.

The work of a block grows with the fourth power of the side.
"""


def run(recipe: Recipe, arguments: Attention) -> dict[str, Any]:
    """Write the pictures that `ssl-dino attention` promises, and print and return their names.

    Raises InputError if a picture cannot be read, two have the same name, the block does not exist
    or the network has no attention.
    """
    stems = [Path(path).stem for path in arguments.images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        what = f"two pictures are called {twice!r}, and so would their drawings be: draw each into its own --out"
        raise InputError(what)
    method = load(recipe.method).from_pretrained(arguments.weights, device=pick_device(arguments.device))
    depth, out = getattr(method.config, "depth", 0), Path(arguments.out)
    if not -depth <= arguments.block < depth:
        raise InputError(f"block {arguments.block}: the network has {depth}, counted from 0")
    out.mkdir(parents=True, exist_ok=True)
    block = arguments.block % depth

    first, written = None, []
    limit = arguments.max_pixels or method.config.max_pixels
    with torch.inference_mode():
        for path in arguments.images:
            image, patches = seen(path, method, arguments.size, limit)
            first = first or (image, patches)
            for name, pictures in drawn(method, image, patches, arguments).items():
                target = out / f"{Path(path).stem}-{name}.png"
                save_grid(pictures[None], target, columns=1, gap=4, titles=titles_of(name, len(pictures), block))
                print(target)
                written.append(str(target))

        # The first picture was read and run above, so only its partner is left to do.
        if first is not None and arguments.match is not None:
            second = seen(arguments.match, method, arguments.size, limit)
            target = out / f"{stems[0]}-{Path(arguments.match).stem}-match.png"
            draw_matches(*first, *second).save(target)
            print(target)
            written.append(str(target))
    return {"pictures": written}


def seen(path: str, method: Any, size: int | None, max_pixels: int) -> tuple[Tensor, Tensor]:
    """A picture uint8 (c, h, w) as the network sees it, and its patch features (h', w', d)."""
    try:
        image = images.read_image(path, method.config.in_channels, max_pixels)
    except BadSample as error:
        raise InputError(f"{path}: {error}") from error
    image = fit(image, method.config.stride, size)
    return image, method.patch_features(_batch(image, method))[0]


def _batch(image: Tensor, method: Any) -> Tensor:
    return image[None].to(next(method.parameters()).device)


def fit(image: Tensor, stride: int, size: int | None) -> Tensor:
    """The image (c, h, w) with its shorter side resized to `size`, cropped to whole patches.

    Without `size`, a photograph is reduced to `LARGEST` and a smaller picture stays as it is.
    Raises InputError if not one patch is left.
    """
    h, w = image.shape[1:]
    if size is None and min(h, w) > LARGEST:
        size = LARGEST
    if size is not None:
        scale = size / min(h, w)
        h, w = round(h * scale), round(w * scale)
        image = resize(image, h, w)
    if h < stride or w < stride:
        raise InputError(f"an image of {h} x {w} pixels is smaller than a patch of {stride}: give --size")
    return image[:, : h // stride * stride, : w // stride * stride]


def drawn(method: Any, image: Tensor, patches: Tensor, arguments: Attention) -> dict[str, Tensor]:
    """Rows of pictures (k, 3, h, w) in [0, 1] of one image and its patch features (h', w', d).

    They show the attention of each head and the mean of all, masks over the image, PCA colours.
    """
    maps = method.attention_maps(_batch(image, method), arguments.block)[0].float().cpu()  # heads h' w'
    maps = torch.cat([maps, maps.mean(0, keepdim=True)])[:, None]  # heads+1 1 h' w'
    size, picture = image.shape[-2:], rgb(as_float(image[None]))  # 1 3 h w
    masked = overlay(picture.expand(len(maps), -1, -1, -1), mass_mask(maps, arguments.mass))
    return {
        "attention": torch.cat([picture, heat(maps, size)]),
        "mask": torch.cat([picture, masked]),
        "pca": torch.cat([picture, F.interpolate(pca_colours(patches[None]).cpu(), size)]),
    }


def titles_of(name: str, count: int, block: int) -> list[str]:
    """What stands above the `count` pictures of one of `drawn`'s rows."""
    if name == "pca":
        return ["image", "patch features"]
    return ["image", *(f"CLS, block {block}, head {head}" for head in range(count - 2)), f"CLS, block {block}, mean"]


def draw_matches(first: Tensor, a: Tensor, second: Tensor, b: Tensor, most: int = 24) -> Image.Image:
    """Two images (c, h, w) beside each other, with lines between patches that choose each other.

    `a` and `b` are their patch features (h', w', d). At most `most` lines are drawn, spread evenly.
    """
    places, mutual = correspondences(a.cpu(), b.cpu())
    height = max(first.shape[1], second.shape[1])
    sheet = torch.cat([F.pad(rgb(x), (0, 0, 0, height - x.shape[1])) for x in (first, second)], 2)  # 3 h w
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    pen, chosen = ImageDraw.Draw(picture), mutual.nonzero()
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(most, len(chosen))).long()]

    # A line joins the centres of two patches, each in the pixels of its own image.
    steps = [image.shape[1] / grid.shape[0] for image, grid in ((first, a), (second, b))]
    for i, (row, column) in enumerate(chosen.tolist()):
        start = ((column + 0.5) * steps[0], (row + 0.5) * steps[0])
        y, x = places[row, column].tolist()
        end = (first.shape[2] + (x + 0.5) * steps[1], (y + 0.5) * steps[1])
        colour = f"hsl({360 * i // max(1, len(chosen))}, 90%, 60%)"
        pen.line([start, end], fill=colour, width=2)
        for px, py in (start, end):
            pen.ellipse([px - 3, py - 3, px + 3, py + 3], fill=colour)
    return picture
