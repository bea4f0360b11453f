"""Pictures of what each task asks and what the network answers, on images that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_core.pixels import as_float
from ssl_pretext.colorization import Colorization
from ssl_pretext.jigsaw import Jigsaw, shuffle, unshuffle
from ssl_pretext.lab import lab_to_rgb, rgb_to_lab
from ssl_pretext.relative_patch import DIRECTIONS, RelativePatch, neighbours
from ssl_pretext.rotation import Rotation, four_rotations, rotate, turns_of
from ssl_pretext.views import TilesView
from ssl_train.data.pictures import sample_images, save_grid

COUNT = 16
TESTED = 512
"""Pictures over which the accuracy in a caption is taken."""


def show_rotation(method: Rotation, source: Any, folder: Path) -> dict[str, str]:
    """Write rotation.png (as shown | turned back | original) and return {file name: caption}."""
    images = pictures_of(method, source)  # b c s s
    answers = torch.cat([method.logits(part).argmax(1) for part in four_rotations(images).split(256)])  # 4·b
    accuracy = (answers == turns_of(answers)).float().mean().item()

    # Picture i is shown in turn i mod 4. Answers are sorted by turn, then by picture.
    rows, labels, right = [], [], []
    for i, image in enumerate(images[:COUNT]):
        shown, answer = rotate(image, i % 4), int(answers[i % 4 * len(images) + i])
        rows.append(torch.stack([shown, rotate(shown, -answer), image]))
        right.append(answer == i % 4)
        labels.append(f"{'right' if right[-1] else 'wrong'}: turned by {90 * (i % 4)}°, answer {90 * answer}°")
    titles = ("as shown", "turned back", "original")
    save_grid(as_float(torch.stack(rows)), folder / "rotation.png", titles=titles, labels=labels, right=right)
    return {"rotation.png": f"as shown | turned back | original; {accuracy:.0%} of the turns recognised, chance 25 %"}


def show_jigsaw(method: Jigsaw, source: Any, folder: Path) -> dict[str, str]:
    """Write jigsaw.png (as shown | solved | original) and return {file name: caption}."""
    tiles = tiles_of(method, source)  # b 9 c t t
    rng, orders = np.random.default_rng(0), method.config.permutations
    asked = torch.from_numpy(rng.integers(orders, size=len(tiles))).to(tiles.device)
    shown = shuffle(tiles, method.permutations[asked])
    answers = torch.cat([method.logits(part).argmax(1) for part in shown.split(256)])  # b
    solved = unshuffle(shown, method.permutations[answers])
    accuracy = (answers == asked).float().mean().item()
    pictures = torch.stack([laid_out(as_float(x[:COUNT])) for x in (shown, solved, tiles)], 1)  # b 3 c h w
    save_grid(
        pictures,
        folder / "jigsaw.png",
        **marked((answers == asked)[:COUNT]),
        titles=("as shown", "put back", "original"),
    )
    return {"jigsaw.png": f"as shown | put back | original; {accuracy:.0%} of {orders} orders recognised"}


def show_colorization(method: Colorization, source: Any, folder: Path) -> dict[str, str]:
    """Write colorization.png (grey | predicted | true colours) and return {file name: caption}."""
    images = pictures_of(method, source)  # b 3 h w
    coloured = torch.cat([method.colorize(part) for part in images.split(64)])

    # The error is compared with that of one colour for all pixels: the mean of all pictures.
    true = rgb_to_lab(images)[:, 1:]  # b 2 h w
    error = (rgb_to_lab(coloured)[:, 1:] - true).norm(dim=1).mean().item()
    one = (true.mean((0, 2, 3), keepdim=True) - true).norm(dim=1).mean().item()

    lightness = method.lightness(images[:COUNT])
    grey = lab_to_rgb(torch.cat([lightness, torch.zeros_like(lightness), torch.zeros_like(lightness)], 1))
    pictures = torch.stack([grey, coloured[:COUNT], as_float(images[:COUNT])], 1)  # b 3 c h w
    save_grid(pictures, folder / "colorization.png", titles=("grey", "predicted", "true colours"))
    caption = f"grey | predicted | true colours; {error:.1f} off in ab on average, the best single colour {one:.1f}"
    return {"colorization.png": caption}


def show_relative_patch(method: RelativePatch, source: Any, folder: Path) -> dict[str, str]:
    """Write relative-patch.png (a neighbour of the centre, as guessed | as it is), and return its
    caption."""
    tiles = tiles_of(method, source)  # b 9 c t t
    pairs = neighbours("centre").to(tiles.device)  # 8 3
    answers = torch.cat([method.pair_logits(part, pairs).argmax(2) for part in tiles.split(256)])  # b 8
    accuracy = (answers == pairs[:, 2]).float().mean().item()

    # Picture i shows its neighbour in direction i mod 8, on white.
    shown = as_float(tiles[:COUNT])  # n 9 c t t
    i = torch.arange(len(shown), device=tiles.device)
    direction = i % len(DIRECTIONS)
    guessed, true = pairs[answers[i, direction], 1], pairs[direction, 1]
    placed = torch.ones(len(shown), 2, *shown.shape[1:], device=tiles.device)  # n 2 9 c t t
    placed[:, :, 4] = shown[:, None, 4]
    placed[i, 0, guessed] = placed[i, 1, true] = shown[i, true]
    pictures = laid_out(placed.flatten(0, 1)).unflatten(0, placed.shape[:2])
    marks = marked(answers[i, direction] == pairs[direction, 2])
    save_grid(pictures, folder / "relative-patch.png", columns=4, **marks, titles=("network's", "true place"))
    return {"relative-patch.png": f"placed by the network | true place; {accuracy:.0%} recognised, chance 12 %"}


def marked(right: Tensor) -> dict[str, Any]:
    """How `save_grid` marks answers (b,) that are right or wrong."""
    return {"right": right.tolist(), "labels": ["right" if each else "wrong" for each in right.tolist()]}


def pictures_of(method: nn.Module, source: Any) -> Tensor:
    """Pictures (b, c, h, w) uint8 of a source, where the network is."""
    return sample_images(source, method.config, TESTED).to(next(method.parameters()).device)


def tiles_of(method: Jigsaw | RelativePatch, source: Any) -> Tensor:
    """Tiles (b, 9, c, t, t) uint8 of a source's pictures, drawn as in training."""
    view, images = TilesView(method.config), sample_images(source, method.config, TESTED)
    drawn = [view({"image": image}, np.random.default_rng(i))["views"][0] for i, image in enumerate(images)]
    return torch.stack(drawn).to(next(method.parameters()).device)


def laid_out(tiles: Tensor, gap: int = 1) -> Tensor:
    """Tiles (b, 9, c, h, w) in [0, 1] as pictures (b, c, …) of three by three, with white gaps."""
    framed = nn.functional.pad(tiles.float(), (gap, gap, gap, gap), value=1.0)
    return rearrange(framed, "b (y x) c h w -> b c (y h) (x w)", y=3)
