"""Images as samples: files and arrays become uint8 tensors, a damaged file one exception."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from ssl_core.errors import BadSample, DataError
from ssl_train.data.files import excerpt, open_file
from ssl_train.data.names import digest

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow knows fifty formats, some of which start other programs (EPS). We read these."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a gibibyte of RGB."""
MANY = 10_000
"""From this many files on, importing a faster decoder pays."""
LOOKED_AT = 64
"""Files that are searched for a bright one where a 16-bit file is dark."""

_MUTE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class PathTable(Sequence[str]):
    """An immutable list of paths in one buffer: workers share it, and it pickles at memory speed.

    Reference counts would copy a list of a million `str` into every worker.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.buffer = b"".join(encoded)
        self.offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(path) for path in encoded], out=self.offsets[1:])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        return os.fsdecode(self.buffer[self.offsets[index] : self.offsets[index + 1]])


class ImageFiles:
    """Image files under `root`; their paths are relative to it, or absolute.

    `parts` holds both splits of a folder that has two: who opens one has listed the other. Without
    `parts`, a share may be held out.
    """

    max_pixels, exact_decode = MAX_PIXELS, False
    """`open_images` and `Opened` set them from the config"""
    table: Path | None = None
    """the .csv that lists them"""

    def __init__(
        self,
        root: Path,
        paths: Iterable[str],
        channels: int,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        parts: Mapping[str, ImageFiles] | None = None,
    ) -> None:
        self.root, self.paths, self.channels = str(root), PathTable(paths), channels
        self.labels, self.classes = labels, classes
        self.parts, self.undivided = {} if parts is None else parts, parts is None
        if len(self) >= MANY:
            faster_jpeg()

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> dict[str, Any]:
        """{"image": uint8 (c, h, w)}. Raises BadSample.

        A dark 16-bit picture is read as it is where others of the files show that values go to
        65535, and refused where none does.
        """
        path = os.path.join(self.root, self.paths[index])
        try:
            return {"image": read_image(path, self.channels, self.max_pixels)}
        except TooDark:
            if not self._full_range:
                raise
            return {"image": read_image(path, self.channels, self.max_pixels, dark=True)}

    def encoded(self, index: int) -> dict[str, Any]:
        """As `load`, but a JPEG file is not decoded yet, unless the config wants it exact."""
        if self.exact_decode:
            return self.load(index)
        path = os.path.join(self.root, self.paths[index])
        return encoded_or(path, self.channels, self.max_pixels, lambda: self.load(index))

    @cached_property
    def _full_range(self) -> bool:
        """Whether one of some 16-bit files, spread over all files, uses much of 0..65535."""
        some = range(0, len(self), -(-len(self) // LOOKED_AT))
        return any(2**14 <= _brightest(os.path.join(self.root, self.paths[i])) < 2**16 for i in some)

    def content(self, index: int) -> bytes:
        """What tells a file from others, and is the same in its copies. Raises OSError."""
        with open_file(os.path.join(self.root, self.paths[index])) as stream:
            return excerpt(stream)

    def name(self, index: int) -> str:
        return self.paths[index]

    def fingerprint(self) -> str:
        return digest(self.paths.buffer, self.paths.offsets, self.labels)


class ImageArray:
    """Images in memory, uint8 or uint16 (n, h, w, c); they keep their type."""

    undivided = True

    def __init__(
        self,
        images: np.ndarray,
        channels: int,
        title: str,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.images, self.channels, self.title = images, channels, title
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> dict[str, Any]:
        """{"image": uint8 or uint16 (c, h, w)}, a copy: changing it does not change the data."""
        return {"image": to_tensor(self.images[index].copy(), self.channels)}

    def content(self, index: int) -> bytes:
        return self.images[index].tobytes()

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        ends = self.images[[0, -1]]  # enough to tell two files of one shape apart
        return digest(self.title.encode(), np.array(self.images.shape), ends, self.labels)


class TooDark(BadSample):
    """A 16-bit file of low values: a dark picture, or one that counts to another end."""


def read_image(
    file: str | os.PathLike[str] | IO[bytes], channels: int = 3, max_pixels: int = MAX_PIXELS, *, dark: bool = False
) -> Tensor:
    """Decode a file into a uint8 tensor (c, h, w) whose memory is (h, w, c), i.e. channels last.

    It reads the first frame and turns it as EXIF says. `channels` = 3 gives RGB and 1 gives luma
    (ITU-R 601: .299 R + .587 G + .114 B), from files of any kind. Transparency is laid on white.
    Deep files hold 0..65535 and become 8-bit; single bands (modes I;16, I, F) are divided by 257
    and rounded, so that 65535 becomes 255. A deep file that uses less than a quarter of that range
    would lose nearly all its levels, so it is refused unless it is known to be `dark`; one with a
    single value is not. A fourth
    band of a TIFF is transparency only if the file says so (its tag ExtraSamples is 1 or 2). Any
    other number of channels must be the file's own.

    Raises BadSample, and nothing else, if the file is missing, damaged, no image of `FORMATS`, or
    larger than `max_pixels` by its header; its kind TooDark for values too low.
    """
    with _checked(file, max_pixels) as image:
        deep = _is_deep(image)  # loading the pixels forgets it
        tensor = _decoded_by_torchvision(image, channels)
        if tensor is not None:
            return tensor
        ImageOps.exif_transpose(image, in_place=True)
        if channels in (1, 3):
            _check_fourth_band(image)
        if deep and not dark:
            high_bytes = np.asarray(image)
            _check_range(int(high_bytes.min()) << 8, int(high_bytes.max()) << 8)
        return pillow_to_tensor(image, channels, dark=dark)


@contextlib.contextmanager
def _checked(file: str | os.PathLike[str] | IO[bytes], max_pixels: int) -> Iterator[Image.Image]:
    """An opened file of at most `max_pixels`. Whatever goes wrong with it inside becomes a
    BadSample."""
    if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):  # Pillow refuses images above twice its own limit
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with _muted_pillow(), _opened(file) as image:
            if image.width * image.height > max_pixels:
                what = f"{image.width} x {image.height} pixels are more than the limit of"
                raise BadSample(f"{what} {max_pixels:,}: make the image smaller, or raise the limit with --max-pixels")
            yield image
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample(f"more pixels than the limit of {max_pixels:,}: {error}") from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged bytes
        raise BadSample(_reason(file, error)) from error


class Encoded:
    """A plain JPEG file in memory, decoded as far as the views of it need.

    A view of 224 pixels needs a fraction of a photograph of 12 megapixels. libjpeg decodes at 1/2,
    1/4 or 1/8 of the size for a fraction of the time: it leaves out the high frequencies of each
    block, which an antialiased resize would remove afterwards.
    """

    def __init__(self, data: bytes, shape: tuple[int, int, int]) -> None:
        self.data, self.shape = data, shape
        self.scale = 9  # nothing is decoded yet
        self._decoded: Any = None

    def scale_for(self, height: int, width: int, size: tuple[int, int]) -> int:
        """n of the scale 1/n at which a crop of this height and width still has the pixels that a
        view of `size` (h, w) has: 1, 2, 4 or 8.

        If an earlier view needed a finer scale, that one is used again.
        """
        room = min(height // size[0], width // size[1])
        return min(self.scale, max(n for n in (1, 2, 4, 8) if n <= max(1, room)))

    def whole(self) -> Tensor:
        """All pixels, as `read_image` decodes them."""
        if not isinstance(self._decoded, Tensor):
            self.scale, self._decoded = 1, read_image(io.BytesIO(self.data), self.shape[0], sys.maxsize)
        return self._decoded

    def cropped(self, scale: int, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        """The `box` (top, left, height, width) in whole pixels, decoded at 1/`scale` and resized to
        uint8 (c, *size). Raises BadSample."""
        if scale < self.scale:
            with _checked(io.BytesIO(self.data), sys.maxsize) as image:
                image.draft(image.mode, (image.width // scale, image.height // scale))
                image.load()
                self.scale, self._decoded = scale, image
        y, x, h, w = (side / scale for side in box)
        area = (x, y, min(x + w, self._decoded.width), min(y + h, self._decoded.height))
        view = self._decoded.resize(size[::-1], Image.Resampling.BICUBIC, box=area)
        return to_tensor(np.array(view), self.shape[0])

    def pixels(self) -> Tensor:
        """What is decoded of the picture, uint8 (c, h, w) at any scale."""
        return self._decoded if isinstance(self._decoded, Tensor) else to_tensor(np.array(self._decoded), self.shape[0])


def encoded_or(
    file: str | os.PathLike[str] | IO[bytes], channels: int, max_pixels: int, load: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """{"image": Encoded} of a plain JPEG file, else what `load` returns. Raises BadSample."""
    with _checked(file, max_pixels) as image:
        if _is_plain_jpeg(image, channels):
            return {"image": Encoded(_bytes_of(image), (channels, image.height, image.width))}
    return load()


def faster_jpeg() -> None:
    """Let `read_image` decode plain JPEG files with torchvision, if it is installed.

    The bits are the same and come sooner (docs/benchmarks.md). The import takes a second or two, so
    call this in the main process before it forks, and for many files.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("torchvision.io")


def _decoded_by_torchvision(image: Image.Image, channels: int) -> Tensor | None:
    """The pixels of an opened file; None if Pillow has to decode it, or to say what is wrong."""
    torchvision = sys.modules.get("torchvision")
    if torchvision is None or not _is_plain_jpeg(image, channels):
        return None
    data = torch.frombuffer(bytearray(_bytes_of(image)), dtype=torch.uint8)
    try:
        tensor = torchvision.io.decode_jpeg(data)
    except RuntimeError:
        return None
    return tensor if tensor.shape == (channels, image.height, image.width) else None


def _is_plain_jpeg(image: Image.Image, channels: int) -> bool:
    """Whether an opened file is a JPEG of these channels, and not turned by EXIF."""
    plain = image.format == "JPEG" and image.mode == {1: "L", 3: "RGB"}.get(channels)
    return plain and image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _bytes_of(image: Image.Image) -> bytes:
    """The whole file of an opened image."""
    stream = cast("IO[bytes]", cast("ImageFile.ImageFile", image).fp)
    stream.seek(0)
    return stream.read()


def pillow_to_tensor(image: Image.Image, channels: int, *, dark: bool = False) -> Tensor:
    """A Pillow image as uint8 (c, h, w), by the rules of `read_image`. Raises BadSample."""
    if channels in (1, 3):
        image = _flatten(image, dark).convert("L" if channels == 1 else "RGB")
    elif len(image.getbands()) != channels or image.mode.startswith(("I", "F")):
        what = f"the file has {len(image.getbands())} channels ({image.mode}), not {channels}:"
        raise BadSample(f"{what} ask for 1 or 3 channels, or put the bands into an .npz array")
    array = np.array(image)  # a writable copy, which torch wants; Pillow's own rows are padded
    return to_tensor(array, channels)


def to_tensor(array: np.ndarray, channels: int) -> Tensor:
    """A uint8 or uint16 array (h, w) or (h, w, c) as a tensor (c, h, w), a view if it can be.

    Grey becomes RGB by repetition, 8-bit RGB becomes grey by luma. Raises BadSample for others.
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

    The files are written to a hidden folder beside `path`, which gets its name at the end: a folder
    of that name is complete. `format` is "png" or "jpeg" (quality 90).
    Raises DataError if `path` exists, and for another format.
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


def _flatten(image: Image.Image, dark: bool) -> Image.Image:
    """Lay transparency on white and bring deep single bands to eight bits."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_eight_bits(np.asarray(image), dark))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_eight_bits(values: np.ndarray, dark: bool) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # also true for NaN
        raise BadSample(f"values from {low} to {high} are not 16-bit: store 0..65535 or 8-bit")
    if values.dtype.kind == "f" and 0 < high <= 1:
        raise BadSample("floating-point values within 0..1: store 0..65535 or 8-bit")
    if not dark:
        _check_range(low, high)
    return np.rint(values / 257.0).astype(np.uint8)


def _check_range(low: float, high: float) -> None:
    """Raises TooDark for deep values in less than a quarter of 0..65535: floats of 0..255, or 12
    or 14 bits in 16."""
    if low < high < 2**14:
        what = f"values from {low} to {high} of 0..65535 would be nearly black in 8 bits:"
        raise TooDark(f"{what} scale all files alike to 0..65535, or store 8-bit or a uint16 array in an .npz file")


def _brightest(path: str) -> int:
    """The largest value of a 16-bit file; 0 for 8 bits, and for a file that cannot be read."""
    try:
        with _muted_pillow(), _opened(path) as image:
            if image.mode.startswith(("I", "F")):
                return int(np.asarray(image).max())
            return int(np.asarray(image).max()) << 8 if _is_deep(image) else 0
    except Exception:  # as in `read_image`, which reports it when the file's turn comes
        return 0


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow will cut the bands of an opened colour file from 16 bits down to 8."""
    tiles = cast("ImageFile.ImageFile", image).tile
    return image.mode in ("RGB", "RGBA", "LA") and any("16" in str(tile[3]) for tile in tiles)


def _check_fourth_band(image: Image.Image) -> None:
    """Raises BadSample for a TIFF of four bands unless its tag ExtraSamples says transparency.

    Pillow takes the fourth band for transparency if the tag is missing, and drops it if the tag
    says "unspecified".
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    rgb = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 2
    bands = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    extra = image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, ())
    if rgb and bands > 3 and not {1, 2} & set(extra):
        what = f"the file has {bands} bands and does not say that one is transparency:"
        raise BadSample(f"{what} keep three, or put all of them into an .npz array and ask for {bands} channels")


@contextlib.contextmanager
def _opened(file: str | os.PathLike[str] | IO[bytes]) -> Iterator[Image.Image]:
    if isinstance(file, (str, os.PathLike)):
        with open_file(file) as stream, Image.open(stream, formats=FORMATS) as image:
            yield image
    else:
        with Image.open(file, formats=FORMATS) as image:
            yield image


@contextlib.contextmanager
def _muted_pillow() -> Iterator[None]:
    """Keep Pillow's warnings about damaged tags and large sizes from the caller's filters.

    `warnings.catch_warnings` is unsafe in threads, and it makes every other warning of the process
    that was shown once appear again. One entry in and the same one out is safe in both ways.
    """
    cast("list[Any]", warnings.filters).insert(0, _MUTE_PILLOW)
    try:
        yield
    finally:
        # it is absent only if another thread has replaced the list of filters in the meantime
        with contextlib.suppress(ValueError):
            cast("list[Any]", warnings.filters).remove(_MUTE_PILLOW)


def _reason(file: str | os.PathLike[str] | IO[bytes], error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, UnidentifiedImageError):
        start = _first_bytes(file)
        if start[:4] in (b"II*\0", b"MM\0*"):
            return "a TIFF of a kind that Pillow does not read (many bands, say): put the bands into an .npz array"
        return f"not an image: starts with {start!r}" if start else "the file is empty"
    # without the path, which the sample's name says
    return f"{type(error).__name__}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"


def _first_bytes(file: str | os.PathLike[str] | IO[bytes]) -> bytes:
    if isinstance(file, (str, os.PathLike)):
        with open_file(file) as stream:
            return stream.read(12)
    file.seek(0)
    return file.read(12)
