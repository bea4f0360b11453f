"""Image files to uint8 tensors and back: every damaged or hostile file ends in one exception."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssl_core.errors import BadSample, DataError

# Pillow knows fifty formats, some of which start other programs (EPS); pictures come in these.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gibibyte of RGB

_MUTE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def read_image(file: str | os.PathLike[str] | IO[bytes], channels: int = 3, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode a file into a uint8 tensor (c, h, w) whose memory is (h, w, c), i.e. channels last.

    The first frame counts, turned as EXIF says. `channels` = 3 gives RGB and 1 gives luma
    (ITU-R 601: .299 R + .587 G + .114 B), from files of any kind. Transparency is laid on white.
    Single bands deeper than 8 bits (modes I;16, I, F) are taken as 0..65535 and divided by 257 with
    rounding, so that 65535 becomes 255. Another number of channels must be the file's own.

    Raises BadSample, and nothing else, where the file is missing, damaged, no image of `FORMATS`,
    or larger than `max_pixels` by its header. Above twice `PIL.Image.MAX_IMAGE_PIXELS` Pillow
    refuses too, so a larger limit needs that one raised as well.
    """
    try:
        with _muted_pillow(), _opened(file) as image:
            if image.width * image.height > max_pixels:
                what = f"{image.width} x {image.height} pixels are more than the limit of"
                raise BadSample(f"{what} {max_pixels:,}: make the image smaller or raise max_pixels")
            tensor = _decoded_by_torchvision(image, channels)
            if tensor is not None:
                return tensor
            ImageOps.exif_transpose(image, in_place=True)
            return pillow_to_tensor(image, channels)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample(f"more pixels than the limit of {max_pixels:,}: {error}") from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged bytes
        raise BadSample(_reason(file, error)) from error


def faster_jpeg() -> None:
    """Let `read_image` decode plain JPEG files by torchvision, where it is installed: the same
    bits, sooner (docs/benchmarks.md).

    The import takes a second or two, so it is for the main process before it forks, and for many
    files.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("torchvision.io")


def _decoded_by_torchvision(image: Image.Image, channels: int) -> Tensor | None:
    """The pixels of an opened file, or None where Pillow has to do it, and to say what is wrong
    with it."""
    torchvision = sys.modules.get("torchvision")
    plain = image.format == "JPEG" and image.mode == {1: "L", 3: "RGB"}.get(channels)
    if torchvision is None or not plain or image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    stream = cast("IO[bytes]", cast("ImageFile.ImageFile", image).fp)
    stream.seek(0)
    data = torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8)
    try:
        tensor = torchvision.io.decode_jpeg(data)
    except RuntimeError:
        return None
    return tensor if tensor.shape == (channels, image.height, image.width) else None


def pillow_to_tensor(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image as uint8 (c, h, w), by the rules of `read_image`. Raises BadSample."""
    if channels in (1, 3):
        image = _flatten(image).convert("L" if channels == 1 else "RGB")
    elif len(image.getbands()) != channels or image.mode.startswith(("I", "F")):
        what = f"the file has {len(image.getbands())} channels ({image.mode}), not {channels}:"
        raise BadSample(f"{what} ask for 1 or 3 channels, or put the bands into an .npz array")
    array = np.array(image)  # a writable copy, which torch wants; Pillow's own rows are padded
    return to_tensor(array, channels)


def to_tensor(array: np.ndarray, channels: int) -> Tensor:
    """A uint8 or uint16 array (h, w) or (h, w, c) as a tensor (c, h, w), a view where no channel
    changes.

    Gray becomes RGB by repeating, RGB of 8 bits becomes gray by luma. Raises BadSample for other
    changes.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    found = array.shape[2]
    if found == channels:
        return torch.from_numpy(array).permute(2, 0, 1)  # h w c -> c h w
    if (found, channels) == (1, 3):
        return torch.from_numpy(array.repeat(3, axis=2)).permute(2, 0, 1)
    if (found, channels) == (3, 1) and array.dtype == np.uint8:
        return pillow_to_tensor(Image.fromarray(array), 1)
    raise BadSample(f"the image has {found} channels and cannot give {channels}: only 1 and, in 8 bits, 3 can")


def write_folder(path: str | os.PathLike[str], images: Iterable[tuple[str, np.ndarray]], format: str) -> Path:
    """Write pairs (class, uint8 (h, w, c)) as `path/<class>/<number>.<format>`; returns the path.

    The files are written in a hidden folder beside `path`, moved to its name only when all are
    there: a folder of that name is complete. `format` is "png" or "jpeg" (quality 90).
    Raises DataError where `path` exists or the format is another one.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path} exists: remove it, or write to another folder")
    if format not in ("png", "jpeg"):
        raise DataError(f"cannot write {format!r} files: choose 'png' or 'jpeg'")
    ending = "jpg" if format == "jpeg" else format
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as hidden:
        partial = Path(hidden, path.name)
        for number, (name, array) in enumerate(images):
            file = partial / name / f"{number:06d}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file, quality=90, compress_level=1)  # of JPEG, of PNG
        partial.rename(path)
    return path


def _flatten(image: Image.Image) -> Image.Image:
    """Lay transparency on white and bring deep single bands to eight bits."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # also true for NaN
        raise BadSample(f"values from {low} to {high} are not 16-bit: store 0..65535 or 8-bit")
    if values.dtype.kind == "f" and 0 < high <= 1:
        raise BadSample("floating-point values within 0..1: store 0..65535 or 8-bit")
    return np.rint(values / 257.0).astype(np.uint8)


@contextlib.contextmanager
def _opened(file: str | os.PathLike[str] | IO[bytes]) -> Iterator[Image.Image]:
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream, Image.open(stream, formats=FORMATS) as image:
            yield image
    else:
        with Image.open(file, formats=FORMATS) as image:
            yield image


@contextlib.contextmanager
def _muted_pillow() -> Iterator[None]:
    """Keep Pillow's warnings about damaged tags and large sizes from the caller's filters.

    Not `warnings.catch_warnings`: it is unsafe in threads, and makes every other warning of the
    process that was shown once appear again. One entry in, one entry out is safe in both ways.
    """
    cast("list[Any]", warnings.filters).insert(0, _MUTE_PILLOW)
    try:
        yield
    finally:
        # absent only if another thread put its own list of filters there in the meantime
        with contextlib.suppress(ValueError):
            cast("list[Any]", warnings.filters).remove(_MUTE_PILLOW)


def _reason(file: str | os.PathLike[str] | IO[bytes], error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, UnidentifiedImageError):
        start = _first_bytes(file)
        return f"not an image: starts with {start!r}" if start else "the file is empty"
    return f"{type(error).__name__}: {error}"


def _first_bytes(file: str | os.PathLike[str] | IO[bytes]) -> bytes:
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            return stream.read(12)
    file.seek(0)
    return file.read(12)
