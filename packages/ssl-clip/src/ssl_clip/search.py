"""The command `search`: a table in the terminal, and a page of thumbnails."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_clip.clip import CLIP
from ssl_clip.index import ImageIndex
from ssl_clip.index_files import read_meta
from ssl_core.device import pick_device
from ssl_core.errors import BadSample, DataError, InputError
from ssl_train.data.files import printable
from ssl_train.data.images import MAX_PIXELS, read_image

if TYPE_CHECKING:
    from ssl_clip.verbs import Search

THUMBNAIL = 240
"""Pixels of the longer side."""


def run(recipe: Any, arguments: Search) -> dict[str, Any]:
    """The command `search`."""
    if (arguments.query is None) == (arguments.image is None):
        raise InputError('give a text ("a red bicycle") or --image, one of them')
    # The model that made the index, which must be found again.
    meta = read_meta(Path(arguments.index))
    weights = arguments.weights or meta["weights"]
    if weights is None:
        raise InputError(f"{arguments.index} does not say which model made it: give --weights")
    clip = CLIP.from_pretrained(weights, device=pick_device(arguments.device))
    index = ImageIndex.open(clip, arguments.index)
    query: Any = arguments.query
    limit = arguments.max_pixels or clip.config.max_pixels
    if arguments.image is not None:
        try:
            query = read_image(arguments.image, clip.config.in_channels, limit)
        except BadSample as error:
            raise DataError(f"{arguments.image} cannot be read: {error}") from error
    found = index.search(query, arguments.top_k)
    for path, score in found:
        print(f"{score:6.3f}  {printable(path)}")
    if arguments.html is not None:
        write_page(Path(arguments.html), arguments.query or f"like {arguments.image}", found, limit)
        print(f"look at  {arguments.html}")
    return {"found": [{"path": path, "cosine": score} for path, score in found], "page": arguments.html}


def write_page(path: Path, title: str, found: list[tuple[str, float]], max_pixels: int = MAX_PIXELS) -> None:
    """An HTML page of its own: thumbnails of (path, score), best first, each a link to its file."""
    from jinja2 import Environment, PackageLoader

    pictures = [
        {
            "link": Path(image).resolve().as_uri(),
            "name": Path(image).name,
            "score": score,
            **_thumbnail(image, max_pixels),
        }
        for image, score in found
    ]
    template = Environment(loader=PackageLoader("ssl_clip"), autoescape=True).get_template("search.html.jinja")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.render(title=title, pictures=pictures), encoding="utf-8", errors="backslashreplace")


def _thumbnail(path: str, max_pixels: int) -> dict[str, str]:
    """{"jpeg": the picture in base64, so that the page can be moved} or {"error": why not}."""
    from PIL import Image

    try:
        pixels = read_image(path, max_pixels=max_pixels)  # c h w
    except BadSample as error:
        return {"error": str(error)}
    picture, buffer = Image.fromarray(pixels.permute(1, 2, 0).numpy()), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(buffer, "jpeg", quality=80)
    return {"jpeg": base64.b64encode(buffer.getvalue()).decode()}
