"""From pictures, as people have them, to features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import InputError
from ssl_testing.tiny import RECIPES, Tiny, TinyConfig
from ssl_train.data.sources import open_source
from ssl_train.data.views import eval_view
from ssl_train.embed import embedder
from ssl_train.evaluate.features import extract

embed = embedder(RECIPES)


@pytest.fixture(scope="module")
def method() -> Tiny:
    torch.manual_seed(0)
    return Tiny(TinyConfig()).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two pictures, none of them of the network's size."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        path = folder / "ab"[i // 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 17, 3), dtype=np.uint8)).save(path)
    return folder


def decoded(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    return image


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.png"))


def test_a_folder_gives_the_features_of_an_evaluation_with_names_and_labels(method, folder):
    found = embed(method, folder)
    expected = extract(method.encode, open_source(folder), eval_view(method.config))
    assert torch.equal(found.features, expected.features) and found.features.shape == (4, 16)
    assert found.names == ["a/0.png", "a/1.png", "b/2.png", "b/3.png"] and found.labels.tolist() == [0, 0, 1, 1]


def test_paths_pil_images_arrays_and_a_folder_give_the_same_features(method, folder):
    expected, paths = embed(method, folder).features, files(folder)
    opened = [decoded(path) for path in paths]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    for images in (paths, map(str, paths), np.array(list(map(str, paths))), opened, arrays, np.stack(arrays),
                   [paths[0], opened[1], arrays[2], str(paths[3])]):  # fmt: skip
        assert torch.equal(embed(method, images).features, expected)
    assert embed(method, paths).names == [str(path) for path in paths]
    assert embed(method, arrays).names == ["images[0]", "images[1]", "images[2]", "images[3]"]


def test_one_image_needs_no_list(method, folder):
    path = files(folder)[0]
    with Image.open(path) as opened:
        for image in (path, str(path), opened, np.asarray(Image.open(path))):
            assert torch.equal(embed(method, image).features, embed(method, folder, batch_size=1).features[:1])


def test_a_turned_photograph_is_upright_from_its_path_and_from_pil(method, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn
    picture.save(tmp_path / "turned.png", exif=exif)
    by_path = embed(method, tmp_path / "turned.png").features
    for opened in (Image.open(tmp_path / "turned.png"), decoded(tmp_path / "turned.png")):
        with opened:
            assert torch.equal(embed(method, opened).features, by_path)
    assert not torch.equal(embed(method, picture).features, by_path)


def test_unreadable_images_are_left_out_and_named(method, folder, tmp_path):
    data = files(folder)[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with (
        Image.open(tmp_path / "cut.png") as cut,
        pytest.warns(UserWarning, match="3 of 4 samples cannot be read and are left out"),
    ):
        images = [files(folder)[1], tmp_path / "cut.png", cut, tmp_path / "nowhere.png"]
        found = embed(method, images)
    assert found.names == [str(images[0])] and [name for name, _ in found.skipped][1] == "images[2]"


@pytest.mark.parametrize("several", [False, True], ids=["folder", "paths"])
def test_images_of_more_pixels_than_the_config_allows_are_left_out(several, folder, tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "large.png")
    Image.open(files(folder)[0]).save(tmp_path / "small.png")
    method = Tiny(TinyConfig(max_pixels=500)).eval()
    with pytest.warns(UserWarning, match="1 of 2 samples cannot be read and are left out: .*large.png"):
        found = embed(method, sorted(tmp_path.iterdir()) if several else tmp_path)
    assert [Path(name).name for name in found.names] == ["small.png"]


def test_precision_batch_size_and_mode_change_the_features_by_rounding_alone(method, folder):
    expected = embed(method, folder).features
    torch.testing.assert_close(embed(method, folder, batch_size=1).features, expected)
    rounded = embed(method, folder, precision="bf16").features
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, expected)
    torch.testing.assert_close(rounded, expected, atol=0.02, rtol=0.02)
    training = Tiny(method.config).train()
    training.load_state_dict(method.state_dict())
    assert torch.equal(embed(training, folder).features, expected) and training.training


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.full((5, 5, 3), 7.0), r"images\[0\] is of type ndarray float64 \(5, 5, 3\): floats from 7 to 7"),
        (torch.randn(2, 3, 8, 8), "leave Normalize out"),
        (torch.zeros(8, 8, dtype=torch.int64), "a uint8 tensor"),
        ([7], r"images\[0\] is of type int: a sample is a picture"),
        (None, "data is of type NoneType"),
        ([], "the list that was given as data is empty"),
        ("nowhere", "there is no 'nowhere'"),
        ("nowhere.png", "nowhere.png: no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image_is_refused_with_what_to_give(method, images, said):
    with pytest.raises(InputError, match=said):
        embed(method, images)


def test_a_method_of_another_package_is_refused(folder):
    with pytest.raises(InputError, match="Linear is no method here; there are Tiny"):
        embed(torch.nn.Linear(2, 2), folder)
