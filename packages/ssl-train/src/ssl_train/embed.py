"""The `embed` of a package's notebook: from pictures, as people have them, to features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.errors import InputError
from ssl_core.method import Recipe, load

if TYPE_CHECKING:
    from ssl_train.evaluate.features import Features


def embedder(recipes: Mapping[str, Recipe]) -> Callable[..., Features]:
    """A package's `embed` for notebooks: like the command, and for pictures in memory too."""

    def embed(
        method: Any,
        images: Any,
        *,
        batch_size: int = 256,
        precision: str = "fp32",
        workers: int = 0,
        progress: bool = False,
    ) -> Features:
        """Features of images as evaluations of `method` see them: resized, cropped, normalised.

        `images` is a path, a PIL image or an array, or a list of these; a uint8 or uint16 array
        (n, h, w, c) is n images. It may also be a `Dataset` of torch or a source, as for `train`. A
        path is an image file, or any data that the command `embed` reads: a folder, a .csv, an
        .npz; of data with a training and a test part, the training part.

        `.features` of the result is (n, d) float32, `.names` are the paths, `.labels` the classes.
        The work is done where `method` is. Files that cannot be read are left out: a warning names
        them and `.skipped` lists them. Raises InputError if `images` is something else, or if none
        can be read.
        """
        from ssl_train.evaluate.features import extract  # here, so that importing a package stays cheap

        recipe = next((recipe for recipe in recipes.values() if load(recipe.method) is type(method)), None)
        if recipe is None:
            known = ", ".join(recipe.method.partition(":")[2] for recipe in recipes.values())
            raise InputError(f"embed(method, images): {type(method).__name__} is no method here; there are {known}")
        options = {"batch_size": batch_size, "precision": precision, "workers": workers, "progress": progress}
        device = next(method.parameters()).device
        view = load(recipe.eval_view)(method.config)
        return extract(method.encode, opened(images, recipe, method.config), view, device=device, **options)

    return embed


def opened(images: Any, recipe: Recipe, config: Any) -> Any:
    """A source of what was given to `embed`. Raises InputError."""
    from ssl_train.data.sources import EXTENSIONS
    from ssl_train.opened import set_decoding

    named = isinstance(images, str | os.PathLike)
    if named and (not str(images).lower().endswith(EXTENSIONS) or Path(images).is_dir()):
        return set_decoding(load(recipe.source)(images, config=config, split="train"), config)
    return one_by_one(images, config)


def one_by_one(images: Any, config: Any) -> Any:
    """A source of images for a method's `config`: one or several, as `embed` takes them.

    A folder in a list of paths stands for the image files below it. Images of more pixels than
    `config.max_pixels` are left out. Raises InputError.
    """
    from PIL import Image

    from ssl_train.data.files import walk
    from ssl_train.data.given import open_given
    from ssl_train.data.sources import EXTENSIONS
    from ssl_train.opened import set_decoding

    # an array or a tensor of two or three dimensions is one image
    if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 0) in (2, 3):
        images = [images]
    elif isinstance(images, Iterator):
        images = list(images)
    if isinstance(images, list | tuple):
        folder = [isinstance(one, str | os.PathLike) and Path(one).is_dir() for one in images]
        below = [
            [os.path.join(one, name) for name in walk(Path(one), EXTENSIONS)] if inside else [one]
            for one, inside in zip(images, folder, strict=True)
        ]
        images = [one for several in below for one in several]
    return set_decoding(open_given(images, channels=config.in_channels), config)
