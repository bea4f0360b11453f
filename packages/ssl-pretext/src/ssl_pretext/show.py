"""Pictures of what each task asks and what the network answers, on images that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_core.pixels import as_float, top
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
    images = _to(method, sample_images(source, method.config, TESTED))
    asked = four_rotations(images)
    answers = torch.cat([method.logits(part).argmax(1) for part in asked.split(256)])
    accuracy = (answers == turns_of(answers)).float().mean().item()
    turns = torch.arange(min(COUNT, len(images))) % 4
    rows = []
    for i, turn in enumerate(turns.tolist()):
        shown = rotate(images[i], turn)
        rows.append(torch.stack([shown, rotate(shown, -int(answers[turn * len(images) + i])), images[i]]))
    save_grid(as_float(torch.stack(rows)), folder / "rotation.png")
    return {"rotation.png": f"as shown | turned back | original; {accuracy:.0%} of the turns recognised, chance 25 %"}


def show_jigsaw(method: Jigsaw, source: Any, folder: Path) -> dict[str, str]:
    """Write jigsaw.png (as shown | solved | original) and return {file name: caption}."""
    tiles = tiles_of(method, source)
    rng = np.random.default_rng(0)
    asked = torch.from_numpy(rng.integers(method.config.permutations, size=len(tiles))).to(tiles.device)
    shown = shuffle(tiles, method.permutations[asked])
    answers = torch.cat([method.logits(part).argmax(1) for part in shown.split(256)])
    solved = unshuffle(shown, method.permutations[answers])
    accuracy = (answers == asked).float().mean().item()
    save_grid(torch.stack([laid_out(as_float(x[:COUNT])) for x in (shown, solved, tiles)], 1), folder / "jigsaw.png")
    orders = f"{method.config.permutations} orders"
    return {"jigsaw.png": f"as shown | put back | original; {accuracy:.0%} of {orders} recognised"}


def show_colorization(method: Colorization, source: Any, folder: Path) -> dict[str, str]:
    """Write colorization.png (grey | predicted | true colours) and return {file name: caption}."""
    images = _to(method, sample_images(source, method.config, TESTED))
    coloured = torch.cat([method.colorize(part) for part in images.split(64)])
    true = rgb_to_lab(images)[:, 1:]
    error = (rgb_to_lab(coloured)[:, 1:] - true).norm(dim=1).mean().item()
    one = (true.mean((0, 2, 3), keepdim=True) - true).norm(dim=1).mean().item()
    lightness = method.lightness(images[:COUNT])
    grey = lab_to_rgb(torch.cat([lightness, torch.zeros_like(lightness), torch.zeros_like(lightness)], 1))
    save_grid(torch.stack([grey, coloured[:COUNT], as_float(images[:COUNT])], 1), folder / "colorization.png")
    caption = f"grey | predicted | true colours; {error:.1f} off in ab on average, the best single colour {one:.1f}"
    return {"colorization.png": caption}


def show_relative_patch(method: RelativePatch, source: Any, folder: Path) -> dict[str, str]:
    """Write relative-patch.png (the centre and one neighbour where it is thought to be | where it is)."""
    tiles = tiles_of(method, source)
    pairs = neighbours("centre").to(tiles.device)
    answers = torch.cat([method.pair_logits(part, pairs).argmax(2) for part in tiles.split(256)])  # b 8
    accuracy = (answers == pairs[:, 2]).float().mean().item()
    rows = []
    for i in range(min(COUNT, len(tiles))):
        direction = i % len(DIRECTIONS)
        centre, neighbour = tiles[i, 4], tiles[i, int(pairs[direction, 1])]
        guessed = int(pairs[answers[i, direction], 1])
        rows.append(
            torch.stack([_placed(centre, neighbour, guessed), _placed(centre, neighbour, int(pairs[direction, 1]))])
        )
    both = as_float(torch.stack(rows))  # b 2 t c h w
    save_grid(laid_out(both.flatten(0, 1)).unflatten(0, both.shape[:2]), folder / "relative-patch.png", columns=4)
    return {"relative-patch.png": f"placed by the network | true place; {accuracy:.0%} recognised, chance 12 %"}


def tiles_of(method: Jigsaw | RelativePatch, source: Any) -> Tensor:
    """Tiles (b, 9, c, t, t) uint8 of a source's pictures, drawn as in training."""
    view = TilesView(method.config)
    images = sample_images(source, method.config, TESTED)
    drawn = [view({"image": image}, np.random.default_rng(i))["views"][0] for i, image in enumerate(images)]
    return _to(method, torch.stack(drawn))


def laid_out(tiles: Tensor, gap: int = 1) -> Tensor:
    """Tiles (b, 9, c, h, w) in [0, 1] as pictures (b, c, …) of three by three, white between them."""
    framed = nn.functional.pad(tiles.float(), (gap, gap, gap, gap), value=1.0)
    return rearrange(framed, "b (y x) c h w -> b c (y h) (x w)", y=3)


def _placed(centre: Tensor, neighbour: Tensor, place: int) -> Tensor:
    canvas = torch.full((9, *centre.shape), top(centre), dtype=centre.dtype, device=centre.device)
    canvas[4], canvas[place] = centre, neighbour
    return canvas


def _to(method: nn.Module, images: Tensor) -> Tensor:
    return images.to(next(method.parameters()).device)
