"""Decoding: every mode, orientation and damage that a folder of pictures may hold."""

from __future__ import annotations

import functools
import io
import re
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import BadSample, DataError
from ssl_train.data.images import ImageFiles, read_image, to_tensor, write_folder


def encoded(image: Image.Image, format: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def picture(height: int = 24, width: int = 36) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x // width, 255 * y // height
    return Image.fromarray(np.stack([red, green, 255 - red], axis=-1).astype(np.uint8))


def pixel(file: io.BytesIO, channels: int = 3) -> list[int]:
    image = read_image(file, channels)
    assert image.shape == (channels, 2, 3)
    assert image.dtype == torch.uint8
    assert (image == image[:, :1, :1]).all()
    return image[:, 0, 0].tolist()


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (3, 2), colour)


def test_rgb_comes_back_exactly_and_lies_channels_last():
    image = read_image(encoded(picture(), "PNG"))
    assert torch.equal(image, torch.from_numpy(np.array(picture())).permute(2, 0, 1))
    assert image[None].is_contiguous(memory_format=torch.channels_last)
    image.zero_()  # writable, without a warning from torch


@pytest.mark.parametrize(
    ("image", "format", "rgb", "luma"),
    [
        (flat("L", 77), "PNG", [77, 77, 77], [77]),
        (flat("1", 1), "PNG", [255, 255, 255], [255]),
        (flat("RGB", (200, 100, 50)), "PNG", [200, 100, 50], [124]),
        (flat("RGBA", (200, 100, 50, 255)), "PNG", [200, 100, 50], [124]),
        (flat("RGBA", (200, 100, 50, 0)), "PNG", [255, 255, 255], [255]),
        (flat("RGBA", (0, 0, 0, 51)), "WEBP", [204, 204, 204], [204]),
        (flat("LA", (0, 102)), "PNG", [153, 153, 153], [153]),
        (flat("RGB", (200, 100, 50)).quantize(4), "PNG", [200, 100, 50], [124]),
        (flat("RGB", (200, 100, 50)).quantize(4), "GIF", [200, 100, 50], [124]),
        (flat("CMYK", (55, 155, 205, 0)), "TIFF", [200, 100, 50], [124]),
        (flat("RGB", (200, 100, 50)), "BMP", [200, 100, 50], [124]),
        (flat("RGB", (200, 100, 50)), "PPM", [200, 100, 50], [124]),
        (flat("I;16", 129), "PNG", [1, 1, 1], [1]),
        (flat("I", 65535), "TIFF", [255, 255, 255], [255]),
        (flat("F", 257.0 * 88 + 128), "TIFF", [88, 88, 88], [88]),
    ],
)
def test_every_mode_becomes_rgb_and_luma(image, format, rgb, luma):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert pixel(encoded(image, format, **options)) == rgb
    assert pixel(encoded(image, format, **options), channels=1) == luma


def test_cmyk_jpeg_has_its_colours_and_not_their_negative():
    file = encoded(flat("CMYK", (55, 155, 205, 0)), "JPEG", quality=100)
    assert np.abs(np.array(pixel(file)) - [200, 100, 50]).max() <= 3


def test_transparent_palette_colour_turns_white():
    image = flat("P", 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    assert pixel(encoded(image, "PNG")) == [200, 100, 50]
    assert pixel(encoded(image, "PNG", transparency=1)) == [255, 255, 255]
    assert pixel(encoded(image, "GIF", transparency=1)) == [255, 255, 255]


def test_sixteen_bits_are_divided_by_257_with_rounding():
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        image = read_image(encoded(Image.fromarray(values), format), channels=1)
        assert image.flatten().tolist() == [0, 0, 1, 1, 1, 2, 254, 255, 255]


@pytest.mark.parametrize(("mode", "value"), [("I", -1), ("I", 65536), ("F", float("nan")), ("F", 0.5), ("F", 7e4)])
def test_deep_values_that_are_not_sixteen_bit_are_refused(mode, value):
    with pytest.raises(BadSample, match=r"store 0\.\.65535 or 8-bit"):
        read_image(encoded(flat(mode, value), "TIFF"))


def ramp(high: int, dtype) -> Image.Image:
    return Image.fromarray(np.linspace(0, high, 6).reshape(2, 3).astype(dtype))


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (ramp(255, np.float32), "TIFF"),
        (ramp(255, np.int32), "TIFF"),
        (ramp(4095, np.uint16), "PNG"),
        (ramp(16383, np.uint16), "TIFF"),
    ],
)
def test_deep_files_of_a_small_range_are_refused_and_not_turned_black(image, format):
    with pytest.raises(BadSample, match=r"would be nearly black in 8 bits: scale all files alike to 0\.\.65535"):
        read_image(encoded(image, format))


def deep_rgb(values: np.ndarray) -> bytes:
    """A PNG with 16 bits a band, which Pillow reads and does not write, of values (h, w, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_deep_colours_keep_their_high_byte_or_are_refused():
    values = np.arange(18).reshape(2, 3, 3) * 3855
    assert read_image(io.BytesIO(deep_rgb(values))).max() == 255
    with pytest.raises(BadSample, match="would be nearly black in 8 bits"):
        read_image(io.BytesIO(deep_rgb(values // 16)))


@pytest.mark.parametrize("deep", ["grey", "colour"])
def test_a_dark_deep_picture_is_kept_where_others_show_the_full_range_and_refused_where_none_does(deep, tmp_path):
    def write(name, high):
        values = np.linspace(0, high, 18).astype(np.uint16).reshape(2, 3, 3)
        data = deep_rgb(values) if deep == "colour" else encoded(Image.fromarray(values[..., 0]), "PNG").getvalue()
        (tmp_path / name).write_bytes(data)

    names = [f"{i:03}.png" for i in range(70)]
    for name in names:
        write(name, 4095)
    flat("RGB", (255, 255, 255)).save(tmp_path / "8bit.png")  # says nothing of the range of the others
    with pytest.raises(BadSample, match="would be nearly black"):
        ImageFiles(tmp_path, [*names, "8bit.png", "nothing.png"], 3).load(5)
    write("002.png", 65535)
    assert 0 < ImageFiles(tmp_path, names, 3).load(5)["image"].max() < 16, "as dark as it is"


def four_bands(extra: int | None) -> io.BytesIO:
    """A TIFF of three colours and a fourth band of 0, whose tag ExtraSamples is `extra`."""
    file = encoded(flat("RGBA", (200, 100, 50, 0)), "TIFF").getvalue()
    entry = file.index(struct.pack("<HHI", 338, 3, 1))
    tag, value = (338, extra) if extra is not None else (65000, 0)
    return io.BytesIO(file[:entry] + struct.pack("<HHIHH", tag, 3, 1, value, 0) + file[entry + 12 :])


@pytest.mark.parametrize("extra", [None, 0])
def test_a_fourth_band_of_unknown_meaning_is_not_transparency(extra):
    with pytest.raises(BadSample, match="has 4 bands and does not say that one is transparency: keep three"):
        read_image(four_bands(extra))


@pytest.mark.parametrize("extra", [1, 2])
def test_a_fourth_band_that_is_called_transparency_is_laid_on_white(extra):
    assert pixel(four_bands(extra)) == [255, 255, 255]


def test_four_bands_in_an_array_are_not_transparency():
    array = np.full((2, 3, 4), 7, np.uint8)
    assert to_tensor(array, 4).shape == (4, 2, 3)
    with pytest.raises(BadSample, match="has 4 channels and cannot give 3"):
        to_tensor(array, 3)


def test_a_tiff_of_thirteen_bands_is_not_called_no_image():
    file = encoded(flat("RGB", 0), "TIFF").getvalue()
    entry = file.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
    with pytest.raises(BadSample, match="put the bands into an .npz array"):
        read_image(io.BytesIO(file[: entry + 8] + struct.pack("<HH", 13, 0) + file[entry + 12 :]))


def test_other_channel_counts_must_be_the_files_own():
    rgba = flat("RGBA", (1, 2, 3, 4))
    assert pixel(encoded(rgba, "PNG"), channels=4) == [1, 2, 3, 4]
    assert pixel(encoded(flat("LA", (5, 6)), "PNG"), channels=2) == [5, 6]
    with pytest.raises(BadSample, match=r"has 3 channels \(RGB\), not 4: ask for 1 or 3"):
        read_image(encoded(flat("RGB", 0), "PNG"), channels=4)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(format):
    stored = np.array(picture().convert("L"))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).T,
        8: np.rot90(stored),
    }
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if format == "WEBP" else {}
        file = encoded(picture().convert("L"), format, exif=exif, **options)
        image = read_image(file, channels=1)[0].numpy().astype(int)
        assert image.shape == expected.shape
        assert np.abs(image - expected).max() <= (6 if format == "JPEG" else 0), orientation


def test_one_pixel_is_an_image():
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        assert read_image(encoded(Image.new("RGB", (1, 1)), format)).shape == (3, 1, 1)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_animated_files_give_their_first_frame(format):
    frames = [flat("RGB", (250, 0, 0)), flat("RGB", (0, 0, 250))]
    options = {"lossless": True} if format == "WEBP" else {}
    file = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert pixel(file) == [250, 0, 0]


def test_bad_files_say_what_is_wrong(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "postscript.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, reason in {
        "missing.jpg": "no such file",
        ".": "a folder, not a file",
        "empty.jpg": "the file is empty",
        "text.jpg": r"not an image: starts with b'<html>404 no'",
        "postscript.jpg": "not an image",
    }.items():
        with pytest.raises(BadSample, match=reason):
            read_image(tmp_path / name)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_files_are_bad_samples(format):
    whole = encoded(picture(), format).getvalue()
    for length in (len(whole) // 3, len(whole) // 2, len(whole) * 4 // 5):
        with pytest.raises(BadSample):
            read_image(io.BytesIO(whole[:length]))


def test_corrupt_jpeg_is_a_bad_sample():
    data = bytearray(encoded(picture(), "JPEG").getvalue())
    table = data.index(b"\xff\xc4")  # Huffman tables
    data[table + 4 : table + 40] = b"\xff" * 36
    with pytest.raises(BadSample):
        read_image(io.BytesIO(bytes(data)))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def gif(screen: int, frame: int) -> bytes:
    header = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0, 0, 0)
    return header + struct.pack("<BHHHHB", 0x2C, 0, 0, frame, frame, 0) + b"\x02\x01\x2c\0;"


@functools.cache
def bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(100_000_000), 9)
    jpeg = bytearray(encoded(picture(), "JPEG").getvalue())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    tiff = encoded(Image.new("L", (1, 1)), "TIFF").getvalue()
    for tag in (256, 257):  # width and height, each one LONG
        entry = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff = tiff[: entry + 8] + struct.pack("<I", 30_000) + tiff[entry + 12 :]
    webp = b"VP8X" + struct.pack("<IB3x", 10, 0) + 2 * (16_382).to_bytes(3, "little")
    return {
        "png": png(30_000, 30_000, (b"IDAT", zeros)),
        "png within twice the limit": png(10_000, 10_000, (b"IDAT", zeros)),
        "png with a text of 100 MB": png(9, 9, (b"zTXt", b"a\0\0" + zeros)),
        "jpeg": bytes(jpeg),
        "tiff": tiff,
        "gif": gif(screen=60_000, frame=9),
        "gif frame": gif(screen=9, frame=10_000),
        "webp": b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        "ppm": b"P6 30000 30000 255\n",
        "bmp": b"BM" + struct.pack("<IIIIiiHH24x", 54, 0, 54, 40, 30_000, 30_000, 1, 24),
    }


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("kind", bombs())
def test_decompression_bombs_are_refused_before_they_grow(kind):
    data = bombs()[kind]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = peak_memory()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(BadSample) as caught:
            read_image(io.BytesIO(data))
    assert peak_memory() - before < 50e6
    assert not seen
    # the text's limit is Pillow's own, and an older Pillow lets libwebp look before it does
    if kind not in ("png with a text of 100 MB", "webp"):
        assert re.search("more than the limit of|more pixels than the limit of", str(caught.value))


def test_the_pixel_limit_names_size_and_limit_and_can_be_set():
    file = encoded(picture(24, 36), "PNG")
    assert read_image(file, max_pixels=24 * 36).shape == (3, 24, 36)
    with pytest.raises(BadSample, match="36 x 24 pixels are more than the limit of 863"):
        read_image(file, max_pixels=24 * 36 - 1)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(data)
    for _ in range(rng.integers(1, 3)):
        place = int(rng.integers(len(data)))
        match rng.integers(5):
            case 0:
                data[place] = int(rng.integers(256))
            case 1:
                data[place] ^= 1 << int(rng.integers(8))
            case 2:
                data = data[: max(place, 1)]
            case 3:
                data[place:place] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                del data[place : place + int(rng.integers(1, 9))]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def test_mutated_files_give_an_image_or_a_bad_sample():
    rng = np.random.default_rng(9)
    exif = Image.Exif()
    exif[0x0112] = 6
    originals = [
        encoded(picture(), "JPEG", exif=exif).getvalue(),
        encoded(picture(), "PNG", exif=exif).getvalue(),
        encoded(picture().quantize(8), "PNG", transparency=3).getvalue(),
        encoded(picture(), "WEBP", exif=exif).getvalue(),
        encoded(picture().convert("RGBA"), "WEBP", lossless=True).getvalue(),
    ]
    outcomes = {"image": 0, "bad": 0}
    for number in range(300):
        data = mutated(originals[number % len(originals)], rng)
        try:
            image = read_image(io.BytesIO(data))
        except BadSample as error:
            assert str(error)
            outcomes["bad"] += 1
        else:
            assert image.dtype == torch.uint8
            assert image.shape[0] == 3
            assert image.numel() > 0
            outcomes["image"] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_reading_in_threads_leaves_the_callers_warning_filters_alone():
    damaged = encoded(picture(), "TIFF").getvalue()[:-40]
    before = list(warnings.filters)

    def read_often():
        for _ in range(100):
            with pytest.raises(BadSample):
                read_image(io.BytesIO(damaged))

    threads = [threading.Thread(target=read_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_arrays_become_tensors_without_a_copy_where_channels_agree():
    array = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert to_tensor(array, 3).data_ptr() == array.ctypes.data
    assert torch.equal(to_tensor(array[:, :, 0], 3), to_tensor(array[:, :, :1], 1).expand(3, 2, 3))
    luma = np.rint(array @ [0.299, 0.587, 0.114])
    assert np.abs(to_tensor(array, 1)[0].numpy() - luma).max() <= 1
    with pytest.raises(BadSample, match="has 3 channels and cannot give 4"):
        to_tensor(array, 4)


def test_written_folder_appears_whole_or_not_at_all(tmp_path: Path):
    def images(number: int):
        for index in range(number):
            if index == 2:
                raise RuntimeError("no power")
            yield ("cat" if index else "dog"), np.full((4, 5, 3), 99, np.uint8)

    with pytest.raises(RuntimeError, match="no power"):
        write_folder(tmp_path / "pets", images(3), "jpeg")
    assert list(tmp_path.iterdir()) == []

    write_folder(tmp_path / "new" / "pets", images(2), "jpeg")
    files = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.*"))
    assert files == ["new/pets/cat/000001.jpg", "new/pets/dog/000000.jpg"]
    assert (read_image(tmp_path / files[0]) == 99).all()
    with pytest.raises(DataError, match="exists: remove it"):
        write_folder(tmp_path / "new" / "pets", images(2), "jpeg")
    with pytest.raises(DataError, match="choose 'png' or 'jpeg'"):
        write_folder(tmp_path / "other", images(2), "webp")
