"""JPEG files that are decoded only as far as a view needs."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssl_core.config import ImageConfig
from ssl_core.errors import BadSample
from ssl_train.data import images
from ssl_train.data.images import Encoded, ImageFiles, encoded_or, read_image
from ssl_train.data.loader import Batches, Plan
from ssl_train.data.scenes import render
from ssl_train.data.split import Subset
from ssl_train.data.views import crop_box, cropped, eval_view, natural, random_resized_crop
from ssl_train.opened import set_decoding

SIZE = (32, 32)
WHOLE = (0, 0, 480, 640)


def photograph(seed: int, height: int = 480, width: int = 640) -> np.ndarray:
    """A scene with sharp edges, stretched, under grain."""
    rng = np.random.default_rng(seed)
    scene = Image.fromarray(render(0, seed, 160).image).resize((width, height), Image.Resampling.LANCZOS)
    return np.clip(np.asarray(scene) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def jpeg(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def opened(data: bytes, channels: int = 3) -> Tensor | Encoded:
    file = io.BytesIO(data)
    return encoded_or(file, channels, 10**6, lambda: {"image": read_image(file, channels)})["image"]


def test_views_are_within_two_levels_of_those_of_the_whole_picture():
    differences, scales = [], []
    for seed in range(200):
        data = jpeg(photograph(seed))
        box = crop_box(np.random.default_rng(seed), 480, 640, (0.08, 1.0))
        picture = opened(data)
        view, wanted = (cropped(image, box, SIZE).float() for image in (picture, read_image(io.BytesIO(data))))
        differences.append((view - wanted).abs().mean().item())
        scales.append(picture.scale)
    assert sum(differences) / 200 < 1.5 and max(differences) < 3
    assert set(scales) == {4, 8}, "the smallest scale that has the pixels of the view"


def test_a_crop_that_needs_all_pixels_gets_the_bits_of_the_whole_picture():
    data, box = jpeg(photograph(0)), (13, 57, 63, 60)
    assert torch.equal(cropped(opened(data), box, SIZE), cropped(read_image(io.BytesIO(data)), box, SIZE))


@pytest.mark.parametrize(
    ("box", "scale"), [((5, 5, 64, 64), 2), ((5, 5, 63, 400), 1), ((0, 0, 255, 256), 4), ((0, 0, 480, 640), 8)]
)
def test_the_crop_still_has_the_pixels_of_the_view(box, scale):
    assert opened(jpeg(photograph(0))).scale_for(*box[2:], SIZE) == scale


def test_crops_lie_where_they_do_in_the_whole_picture():
    gradient = np.broadcast_to(np.linspace(0, 255, 640, dtype=np.uint8)[None, :, None], (480, 640, 3))
    data = jpeg(np.ascontiguousarray(gradient))
    for x in range(0, 64, 7):
        views = [cropped(image, (3, x, 300, 301), SIZE) for image in (opened(data), read_image(io.BytesIO(data)))]
        assert (views[0].float() - views[1].float()).abs().max() <= 1.5, x


def test_a_picture_is_decoded_again_only_for_more_pixels(monkeypatch):
    picture, asked, usual = opened(jpeg(photograph(0))), [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, *a, **k: asked.append(image.size) or usual(image, *a, **k))
    for box in (WHOLE, WHOLE, (0, 0, 130, 130), WHOLE):
        cropped(picture, box, SIZE)
    assert asked == [(80, 60), (80, 60), (160, 120), (160, 120)]
    small = (0, 0, 40, 40)
    first, again = cropped(picture, small, SIZE), cropped(picture, WHOLE, SIZE)
    whole = read_image(io.BytesIO(picture.data))
    assert torch.equal(first, cropped(whole, small, SIZE)) and torch.equal(again, cropped(whole, WHOLE, SIZE))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(photograph(0), exif=exif)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("data", [turned(), png(), jpeg(photograph(0)[..., 0])], ids=["turned by EXIF", "PNG", "grey"])
def test_other_files_are_decoded_whole(data):
    picture = opened(data)
    assert isinstance(picture, Tensor) and torch.equal(picture, read_image(io.BytesIO(data)))


def test_a_grey_picture_stays_grey():
    data = jpeg(photograph(0)[..., 0])
    view = cropped(opened(data, channels=1), WHOLE, SIZE)
    assert view.shape == (1, *SIZE) and view.dtype == torch.uint8
    assert (view.float() - cropped(read_image(io.BytesIO(data), 1), WHOLE, SIZE).float()).abs().mean() < 2


class View:
    """A crop of the image; with `first`, of one that may not be decoded yet."""

    def __init__(self, first: bool, seen: list[object]) -> None:
        self.crops_first, self.seen = first, seen

    def __call__(self, sample, rng):
        self.seen.append(sample["image"])
        return {"views": [random_resized_crop(sample["image"], rng, SIZE, (0.2, 1.0))]}


@pytest.fixture
def files(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(photograph(number)))
    (tmp_path / "8.jpg").write_bytes(jpeg(np.full((480, 640, 3), 90, np.uint8)))
    return ImageFiles(tmp_path, [f"{number}.jpg" for number in range(9)], 3)


def batches(source, transform) -> Batches:
    """The loader over an epoch in batches of three."""
    return Batches(source, transform, Plan(len(source), 3, 1, 0))


@pytest.mark.parametrize("part", [False, True])
def test_the_loader_hands_files_to_views_that_begin_with_their_crops(files, part):
    source = Subset(files, np.arange(9)) if part else files
    for first, kind in ((True, Encoded), (False, Tensor)):
        seen = []
        loader = batches(source, View(first, seen))
        assert len(list(loader)) == 3
        assert {type(image) for image in seen} == {kind} and list(loader.blank) == [8], "one colour all over is seen"


def test_exact_decoding_gives_the_bits_of_whole_pictures(files):
    usual = [part[0]["views"][0] for part in batches(files, View(False, []))]
    set_decoding(files, ImageConfig(image_size=32, patch_size=8, exact_decode=True))
    seen = []
    exact = [part[0]["views"][0] for part in batches(files, View(True, seen))]
    assert all(map(torch.equal, usual, exact)) and not any(isinstance(image, Encoded) for image in seen)


def test_a_file_that_is_cut_off_is_an_unreadable_sample(files, tmp_path):
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(BadSample, match="truncated"):
        cropped(files.encoded(3)["image"], WHOLE, SIZE)
    loader = batches(files, View(True, []))
    with pytest.warns(UserWarning, match=r"3\.jpg is unreadable, another sample takes its place"):
        assert len(list(loader)) == 3
    assert list(loader.bad) == [3]


def test_a_file_of_too_many_pixels_is_not_decoded(files, monkeypatch):
    files.max_pixels = 1000
    monkeypatch.setattr(images, "_bytes_of", lambda image: pytest.fail("it was read"))
    with pytest.raises(BadSample, match="raise the limit with --max-pixels"):
        files.encoded(0)


def test_views_and_evaluations_take_what_they_need(files):
    picture = files.encoded(0)["image"]
    assert natural(SIZE)(picture, np.random.default_rng(0)).shape == (3, *SIZE) and picture.scale > 1
    view = eval_view(ImageConfig(image_size=32, patch_size=8))(files.load(0))["views"][0]
    assert view.shape == (3, *SIZE), "an evaluation decodes the whole picture"
