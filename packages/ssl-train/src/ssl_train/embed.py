"""The `embed` of a package's notebook: from pictures, as people have them, to features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.errors import BadSample, InputError
from ssl_core.method import Recipe, load

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ssl_train.evaluate.features import Features

    One = str | os.PathLike[str] | Image.Image | np.ndarray
    Images = One | Iterable[One]


def embedder(recipes: Mapping[str, Recipe]) -> Callable[..., Features]:
    """A package's `embed` for notebooks: like the command, and for pictures in memory too."""

    def embed(
        method: Any,
        images: Images,
        *,
        batch_size: int = 256,
        precision: str = "fp32",
        workers: int = 0,
        progress: bool = False,
    ) -> Features:
        """Features of images as evaluations of `method` see them: resized, cropped, normalised.

        `images` is a path, a PIL image or an array, or a list of these; a uint8 or uint16 array
        (n, h, w, c) is n images. A path is an image file, or any data that the command `embed`
        reads: a folder, a .csv, an .npz; of data with a training and a test part, the training
        part.

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


def opened(images: Images, recipe: Recipe, config: Any) -> Any:
    """A source of what was given to `embed`. Raises InputError."""
    from ssl_train.data.sources import EXTENSIONS

    if isinstance(images, str | os.PathLike):
        if not str(images).lower().endswith(EXTENSIONS) or Path(images).is_dir():
            return load(recipe.source)(images, config=config, split="train")
    return Given(listed(images), config.in_channels)


def listed(images: Images) -> list[Any]:
    """The images of an argument one by one; a folder stands for the image files below it. Raises
    InputError if there are none."""
    from ssl_train.data.files import walk
    from ssl_train.data.sources import EXTENSIONS

    # an array or a tensor (h, w) or (h, w, c) is one image
    path = isinstance(images, str | os.PathLike)
    several = isinstance(images, Iterable) and not path and getattr(images, "ndim", 0) not in (2, 3)
    found: list[Any] = []
    for image in images if several else [images]:  # type: ignore[union-attr]
        if isinstance(image, str | os.PathLike) and Path(image).is_dir():
            found += [os.path.join(image, name) for name in walk(Path(image), EXTENSIONS)]
        else:
            found.append(image)
    if not found:
        raise InputError("there are no images in what was given")
    return found


class Given:
    """A source of images that a caller gave one by one: paths, PIL images, arrays."""

    labels = classes = None

    def __init__(self, images: list[One], channels: int) -> None:
        """Raises InputError for an image of another type."""
        import numpy as np
        from PIL import Image

        for i, image in enumerate(images):
            pixels = isinstance(image, np.ndarray) and image.dtype in (np.uint8, np.uint16) and image.ndim in (2, 3)
            if not pixels and not isinstance(image, str | os.PathLike | Image.Image):
                shape = f" {image.dtype} {tuple(image.shape)}" if hasattr(image, "dtype") else ""
                what = f"image {i} is a {type(image).__name__}{shape}: give a path, a PIL image or a uint8 array (h, w, c);"
                raise InputError(f"{what} a tensor (b, c, h, w) of the right size goes to `method.encode`")
        self.images, self.channels = images, channels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> dict[str, Any]:
        """{"image": (c, h, w)}. Raises BadSample."""
        from PIL import Image, ImageOps

        from ssl_train.data.images import pillow_to_tensor, read_image, to_tensor

        image = self.images[index]
        if isinstance(image, str | os.PathLike):
            return {"image": read_image(image, self.channels)}
        if not isinstance(image, Image.Image):
            return {"image": to_tensor(image.copy(), self.channels)}
        try:
            upright = ImageOps.exif_transpose(image)  # as `read_image` does; decodes the file
        except (OSError, ValueError, SyntaxError) as error:  # it was opened, and is damaged or closed
            raise BadSample(f"{type(error).__name__}: {error}") from error
        return {"image": pillow_to_tensor(upright, self.channels)}

    def name(self, index: int) -> str:
        image = self.images[index]
        return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"
