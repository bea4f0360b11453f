"""`ssl-dino attention`: what a ViT attends to in a picture, its patch features as colours, and what corresponds in two.

The masks are those of DINO (arXiv 2104.14294, section 4.2.2), the colours those of DINOv2 (arXiv 2304.07193, section 7.5).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ssl_core.device import pick_device
from ssl_core.errors import BadSample, InputError
from ssl_core.method import Recipe, load
from ssl_core.pixels import as_float
from ssl_train.data.pictures import rgb, save_grid
from ssl_train.data.views import resize

if TYPE_CHECKING:
    from PIL import Image

    from ssl_dino.verbs import Attention


def mass_mask(maps: Tensor, mass: float) -> Tensor:
    """The smallest sets of patches that hold `mass` of the attention of maps (…, h, w): bool (…, h, w).

    Sorted ascending, a patch stays where the cumulative share exceeds 1 − mass (the authors' `visualize_attention.py`).
    """
    values, order = maps.flatten(-2).sort(-1)
    kept = values.cumsum(-1) / values.sum(-1, keepdim=True) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept).view(maps.shape)


def overlay(images: Tensor, mask: Tensor, dim: float = 0.25) -> Tensor:
    """Images (b, c, h, w) with what a mask (b, 1, h', w') of patches leaves out dimmed to `dim`."""
    kept = F.interpolate(mask.to(images.dtype), images.shape[-2:])
    return images * (dim + (1 - dim) * kept)


LARGEST = 480
"""Pixels of the shorter side that the authors' `visualize_attention.py` takes; a block's work grows with its fourth power."""


def heat(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Attention maps (b, 1, h', w') as grey pictures (b, 3, *size), each brought to a largest value of 1."""
    return repeat(F.interpolate(maps / maps.amax((2, 3), keepdim=True), size), "b 1 h w -> b c h w", c=3)


def pca_colours(features: Tensor) -> Tensor:
    """The first three principal components of patch features (b, h, w, d) as colours in [0, 1], (b, 3, h, w).

    The components are those of all patches together, each stretched between its 1st and 99th percentile. A sign is
    free: here the largest coefficient is positive.
    """
    b, h, w, _ = features.shape
    rows = rearrange(features.float(), "b h w d -> (b h w) d")
    rows = rows - rows.mean(0)
    _, axes = torch.linalg.eigh(rows.T @ rows)
    axes = axes[:, -3:].flip(1)  # d 3, largest variance first
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    scores = rows @ (axes * largest.sign())
    low, high = scores.quantile(torch.tensor([0.01, 0.99], device=rows.device), 0)
    colours = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    if colours.shape[1] < 3:
        colours = F.pad(colours, (0, 3 - colours.shape[1]))
    return rearrange(colours, "(b h w) c -> b c h w", b=b, h=h, w=w)


def correspondences(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """For each patch of `first` (h, w, d) the most similar one of `second` (h', w', d) by cosine.

    Returns (its (row, column), (h, w, 2) long; whether it in turn points back, (h, w) bool).
    """
    a, b = (F.normalize(x.float().flatten(0, 1), dim=-1) for x in (first, second))
    similar = a @ b.T
    there, back = similar.argmax(1), similar.argmax(0)
    mutual = back[there] == torch.arange(len(a), device=a.device)
    places = torch.stack([there // second.shape[1], there % second.shape[1]], -1)
    return places.view(*first.shape[:2], 2), mutual.view(first.shape[:2])


def attention(recipe: Recipe, flags: Attention) -> None:
    """Write the pictures that `ssl-dino attention` promises and print their names.

    Raises InputError for a picture that cannot be read, two of one name, a block that is not there and a network without
    attention.
    """
    stems = [Path(path).stem for path in flags.images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(
            f"two pictures are called {twice!r}, and so would their drawings be: draw each into its own --out"
        )
    method = load(recipe.method).from_pretrained(flags.weights, device=pick_device(flags.device))
    depth, out = getattr(method.config, "depth", 0), Path(flags.out)
    if not -depth <= flags.block < depth:
        raise InputError(f"block {flags.block}: the network has {depth}, counted from 0")
    out.mkdir(parents=True, exist_ok=True)
    first: list[Tensor] = []
    with torch.inference_mode():
        for path in flags.images:
            image = opened(path, method, flags)
            patches = method.patch_features(_one(image, method))[0]  # h w d
            first = first or [image, patches]
            for name, pictures in drawn(method, image, patches, flags).items():
                target = out / f"{Path(path).stem}-{name}.png"
                save_grid(pictures[None], target, columns=1, gap=4)
                print(target)
        if flags.match is not None:
            second = opened(flags.match, method, flags)
            target = out / f"{Path(flags.images[0]).stem}-{Path(flags.match).stem}-match.png"
            draw_matches(first[0], second, first[1], method.patch_features(_one(second, method))[0]).save(target)
            print(target)


def opened(path: str, method: Any, flags: Attention) -> Tensor:
    """The picture uint8 (c, h, w) as the network sees it."""
    from ssl_train.data.images import read_image

    try:
        image = read_image(path, method.config.in_channels)
    except BadSample as error:
        raise InputError(f"{path}: {error}") from error
    return fit(image, method.config.stride, flags.size)


def _one(image: Tensor, method: Any) -> Tensor:
    return image[None].to(next(method.parameters()).device)


def drawn(method: Any, image: Tensor, patches: Tensor, flags: Attention) -> dict[str, Tensor]:
    """Rows of pictures (k, 3, h, w) in [0, 1] of one image, of its features (h', w', d) of patches: heads and their mean,
    masks over the image, PCA colours."""
    maps = method.attention_maps(_one(image, method), flags.block)[0].float().cpu()  # heads h w
    maps = torch.cat([maps, maps.mean(0, keepdim=True)])[:, None]  # heads + 1, 1 h w
    size, picture = image.shape[-2:], rgb(as_float(image[None]))
    masked = overlay(picture.expand(len(maps), -1, -1, -1), mass_mask(maps, flags.mass))
    return {
        "attention": torch.cat([picture, heat(maps, size)]),
        "mask": torch.cat([picture, masked]),
        "pca": torch.cat([picture, F.interpolate(pca_colours(patches[None]).cpu(), size)]),
    }


def fit(image: Tensor, stride: int, size: int | None) -> Tensor:
    """The image (c, h, w) with its shorter side resized to `size`, cropped to a multiple of the patch.

    Without `size` a photograph comes down to `LARGEST`, and what is smaller stays as it is. Raises InputError when not
    one patch is left.
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


def draw_matches(first: Tensor, second: Tensor, a: Tensor, b: Tensor, most: int = 24) -> Image.Image:
    """Two images beside each other, lines between the centres of patches that choose each other, at most `most` spread
    evenly."""
    from PIL import Image, ImageDraw

    places, mutual = correspondences(a.cpu(), b.cpu())
    height = max(first.shape[1], second.shape[1])
    sheet = torch.cat([F.pad(rgb(x), (0, 0, 0, height - x.shape[1])) for x in (first, second)], 2)
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    pen, chosen = ImageDraw.Draw(picture), mutual.nonzero()
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(most, len(chosen))).long()]
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
