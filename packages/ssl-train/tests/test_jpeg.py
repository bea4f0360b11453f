"""JPEG files decoded by torchvision are those that Pillow decodes, whole and damaged ones."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import BadSample
from ssl_train.data import images
from ssl_train.data.images import faster_jpeg, read_image

pytest.importorskip("torchvision.io")


def picture(height=37, width=50, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin((i + 1) * (y / 9 + x / 13)) + rng.normal(0, 15, (height, width)) for i in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8))


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_both(monkeypatch, data, channels=3):
    """What torchvision's and Pillow's way give: a tensor or the message of a BadSample; and whether
    the first was used."""
    faster_jpeg()
    used, results = [], []

    def spy(image, channels):
        tensor = decode(image, channels)
        used.append(tensor is not None)
        return tensor

    decode = images._decoded_by_torchvision
    for way in (spy, lambda *_: None):
        monkeypatch.setattr(images, "_decoded_by_torchvision", way)
        try:
            results.append(read_image(io.BytesIO(data), channels))
        except BadSample as error:
            results.append(str(error))
    monkeypatch.setattr(images, "_decoded_by_torchvision", decode)
    return *results, any(used)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_bits_are_pillows(monkeypatch, subsampling, progressive):
    for quality, size in itertools.product((20, 75, 95, 100), ((37, 50), (64, 48), (1, 1), (8, 3))):
        data = encoded(picture(*size), quality=quality, subsampling=subsampling, progressive=progressive)
        ours, theirs, used = by_both(monkeypatch, data)
        assert used and torch.equal(ours, theirs) and ours.stride() == theirs.stride()
        ours.zero_()  # writable


def test_grey_files_are_decoded_to_one_channel(monkeypatch):
    ours, theirs, used = by_both(monkeypatch, encoded(picture().convert("L")), channels=1)
    assert used and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("image", "channels", "options"),
    [
        (picture(), 1, {}),  # luma of the decoded colours, which is not the file's Y
        (picture().convert("L"), 3, {}),
        (picture().convert("CMYK"), 3, {}),
        *((picture(), 3, {"exif": orientation}) for orientation in range(2, 9)),
    ],
)
def test_what_is_not_plain_is_left_to_pillow(monkeypatch, image, channels, options):
    if options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options = {"exif": exif}
    ours, theirs, used = by_both(monkeypatch, encoded(image, **options), channels)
    assert not used and torch.equal(ours, theirs)


def test_exif_that_turns_nothing_is_no_hindrance(monkeypatch):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "maker"
    ours, theirs, used = by_both(monkeypatch, encoded(picture(), exif=exif))
    assert used and torch.equal(ours, theirs)


def test_damaged_files_end_the_same_way_with_the_same_words(monkeypatch):
    data, rng = encoded(picture(120, 160), quality=85), np.random.default_rng(0)
    read = bad = 0
    for number in range(400):
        damaged = bytearray(data)
        for place in rng.integers(2 if number % 3 else 600, len(data), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        if number % 5 == 0:
            damaged = damaged[: rng.integers(100, len(data))]
        ours, theirs, _ = by_both(monkeypatch, bytes(damaged))
        if isinstance(theirs, str):
            assert ours == theirs
            bad += 1
        else:
            assert torch.equal(ours, theirs)
            read += 1
    assert read > 50 and bad > 50


def test_the_limit_of_pixels_comes_first():
    faster_jpeg()
    with pytest.raises(BadSample, match="50 x 37 pixels are more than the limit of 1,000"):
        read_image(io.BytesIO(encoded(picture())), max_pixels=1000)


def test_many_files_bring_the_faster_decoder(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(images, "faster_jpeg", lambda: called.append(True))
    images.ImageFiles(tmp_path, [f"{i}.jpg" for i in range(images.MANY - 1)], channels=3)
    assert not called
    images.ImageFiles(tmp_path, [f"{i}.jpg" for i in range(images.MANY)], channels=3)
    assert called
