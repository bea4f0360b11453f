"""From what a user writes after --data to samples, or to an error that says what to do."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_train.data.images import ImageFiles, PathTable, to_tensor
from ssl_train.data.names import digest
from ssl_train.data.scenes import Scenes
from ssl_train.data.sources import open_source


def save(file: Path, value: int = 0, size: tuple[int, int] = (6, 5), **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(file, **options)
    return file


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def value(source, index: int) -> int:
    image = source.load(index)["image"]
    assert image.dtype == torch.uint8
    return int(image[0, 0, 0])


# --- folders


def test_a_folder_is_searched_in_depth_and_sorted(tmp_path: Path):
    for name in ("b/2.png", "b/deep/er/1.JPG", "a.webp", "b/10.png", "c.gif", "d.tiff"):
        save(tmp_path / name)
    for name in (".hidden.png", ".thumbnails/1.png", "b/._2.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    source = open_source(tmp_path)
    assert names(source) == ["a.webp", "b/10.png", "b/2.png", "b/deep/er/1.JPG", "c.gif", "d.tiff"]
    assert source.labels is None
    assert source.classes is None
    assert source.load(0)["image"].shape == (3, 5, 6)
    assert open_source(str(tmp_path), channels=1).load(0)["image"].shape == (1, 5, 6)


def test_class_folders_become_labels(tmp_path: Path):
    for name in ("dog/1.png", "cat/x/2.png", "cat/1.png", "loose.png"):
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = open_source(tmp_path)
    assert names(source) == ["cat/1.png", "cat/x/2.png", "dog/1.png", "loose.png"]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, -1]
    assert source.labels.dtype == np.int64


@pytest.mark.parametrize("second", ["test", "val"])
def test_train_and_test_folders_are_splits_with_common_classes(tmp_path: Path, second):
    for name in ("train/ape/1.png", "train/cat/1.png", f"{second}/cat/2.png", f"{second}/eel/1.png"):
        save(tmp_path / name)
    train, test = open_source(tmp_path), open_source(tmp_path, split="test")
    assert names(train) == ["train/ape/1.png", "train/cat/1.png"]
    assert names(test) == [f"{second}/cat/2.png", f"{second}/eel/1.png"]
    assert train.classes == test.classes == ["ape", "cat", "eel"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1, 2])
    assert train.load(0)["image"].shape == (3, 5, 6)


def test_a_folder_without_splits_has_no_test_data(tmp_path: Path):
    save(tmp_path / "train" / "1.png")
    assert names(open_source(tmp_path)) == ["train/1.png"]
    with pytest.raises(DataError, match=r"has no test split: make .*train and .*test"):
        open_source(tmp_path, split="test")


def test_links_in_circles_end_and_broken_ones_are_bad_samples(tmp_path: Path):
    save(tmp_path / "a" / "1.png", 50)
    try:
        (tmp_path / "a" / "up").symlink_to(tmp_path)
        (tmp_path / "b").symlink_to(tmp_path / "a")
        (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
        (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (tmp_path / "link.png").symlink_to(tmp_path / "a" / "1.png")
    except OSError:
        pytest.skip("this file system has no links")
    source = open_source(tmp_path)
    assert names(source) == ["a/1.png", "gone.png", "link.png", "self.png"]
    assert value(source, 2) == 50
    for index in (1, 3):
        with pytest.raises(BadSample):
            source.load(index)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_image(tmp_path: Path):
    save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    assert names(open_source(tmp_path)) == ["1.png"]


def test_an_empty_folder_is_an_error(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"no images in .*: looked for \.jpg .*\.png"):
        open_source(tmp_path)


def test_file_names_may_be_any_bytes(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88.png")
    try:
        save(tmp_path / name, 9)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert names(source) == [name]
    assert value(source, 0) == 9


# --- CSV


def test_csv_rows_are_samples(tmp_path: Path):
    save(tmp_path / "images" / "1.png", 10)
    other = save(tmp_path / "elsewhere" / "2, old.png", 20)
    table = tmp_path / "images" / "table.csv"
    table.write_text(f'\ufeffpath,label\n1.png,dog\n\n"{other}",cat\n./1.png,\n', encoding="utf-8")
    source = open_source(table)
    assert names(source) == ["1.png", str(other), "1.png"]
    assert [value(source, i) for i in range(3)] == [10, 20, 10]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0, -1]


def test_tab_separated_rows_and_columns_in_any_order(tmp_path: Path):
    (tmp_path / "table.tsv").write_text("label\tnote\tpath\n10\tx, y\t1.png\n9\t\t2.png\n-1\t\t3.png\n")
    source = open_source(tmp_path / "table.tsv")
    assert names(source) == ["1.png", "2.png", "3.png"]
    assert source.classes == ["9", "10"]
    assert source.labels.tolist() == [1, 0, -1]


def test_csv_without_labels(tmp_path: Path):
    (tmp_path / "table.csv").write_text("path\n1.png\nsub/2.png\n")
    source = open_source(tmp_path / "table.csv")
    assert (len(source), source.labels, source.classes) == (2, None, None)
    with pytest.raises(BadSample, match="no such file"):
        source.load(0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write the header 'path,label' or 'path'"),
        ("1.png,dog\n2.png,cat\n", r"first row is '1\.png,dog': write the header"),
        ("path,label\n", "no row below its header"),
        ("path,label\n1.png,dog\n2.png\n", r"row 3: 1 columns, the header has 2"),
        ("path,label\n1,5.png,dog\n", r'row 2: 3 columns.* between "quotes"'),
        ("path,label\n ,dog\n", r"row 2: ' ' is not a path"),
        ("path\na\0b.png\n", r"row 2"),
        ("path\n1.png\n../2.png\n", r"row 3: '\.\./2\.png' leaves the file's folder"),
        ("path\na/../../2.png\n", r"row 2: .* leaves the file's folder"),
        ('path\n"' + "x" * 200_000, "row 2: field larger than field limit"),
    ],
)
def test_unusable_csv_files_name_the_row(tmp_path: Path, text, reason):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path / "table.csv")


def test_a_picture_called_csv_is_an_error(tmp_path: Path):
    save(tmp_path / "1.png").rename(tmp_path / "1.csv")
    with pytest.raises(DataError, match="write the header"):
        open_source(tmp_path / "1.csv")


# --- arrays


def test_arrays_are_samples(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.array([2, 0, -1, 1], np.int8))
    source = open_source(tmp_path / "data.npz")
    assert torch.equal(source.load(1)["image"], torch.from_numpy(images[1]).permute(2, 0, 1))
    assert source.labels.tolist() == [2, 0, -1, 1]
    assert source.labels.dtype == np.int64
    assert source.classes == ["0", "1", "2"]
    assert source.name(1) == "data.npz[1]"
    source.load(1)["image"].zero_()
    assert source.load(1)["image"].any(), "a sample that is changed in place changes the data"


def test_arrays_of_16_bits_stay_so(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 65536, (2, 4, 4), dtype=np.uint16)
    np.savez(tmp_path / "deep.npz", images=images)
    for channels in (1, 3):
        image = open_source(tmp_path / "deep.npz", channels=channels).load(1)["image"]
        assert image.dtype == torch.uint16
        assert torch.equal(image.to(torch.int32), torch.from_numpy(images[1].astype(np.int32)).expand(channels, 4, 4))
    np.savez(tmp_path / "rgb.npz", images=np.repeat(images[..., None], 3, -1))
    with pytest.raises(DataError, match=r"uint16 \(n, h, w, c\), have 3 channels, not 1"):
        open_source(tmp_path / "rgb.npz", channels=1)
    with pytest.raises(BadSample, match="3 channels and cannot give 1"):
        to_tensor(np.repeat(images[0][..., None], 3, -1), 1)


def test_gray_arrays_become_what_is_asked_for(tmp_path: Path):
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    np.savez(tmp_path / "gray.npz", images=images)
    np.savez(tmp_path / "five.npz", images=np.zeros((2, 4, 4, 5), np.uint8))
    assert torch.equal(open_source(tmp_path / "gray.npz").load(1)["image"], torch.from_numpy(images[1]).expand(3, 4, 4))
    assert open_source(tmp_path / "gray.npz").labels is None
    assert open_source(tmp_path / "five.npz", channels=5).load(0)["image"].shape == (5, 4, 4)
    with pytest.raises(DataError, match="have 5 channels, not 3"):
        open_source(tmp_path / "five.npz")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros(3)}, r"holds \['x'\]: name the pictures' array 'images'"),
        ({"images": np.zeros((2, 4, 4, 3))}, "images are float64 .*: store uint8"),
        ({"images": np.zeros((4, 4), np.uint8)}, r"images are uint8 \(4, 4\)"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, r"images are uint8 \(0, 4, 4\)"),
        ({"images": np.array([{}], dtype=object)}, "cannot read .*allow_pickle=False"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, r"store \(2,\)"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, "labels are float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -2])}, "-1 for no label"),
    ],
)
def test_unusable_arrays_say_what_to_store(tmp_path: Path, arrays, reason):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path / "data.npz")


def test_damaged_array_files_are_data_errors(tmp_path: Path):
    file = tmp_path / "data.npz"
    np.savez_compressed(file, images=np.arange(2048, dtype=np.uint8).reshape(8, 16, 16))
    whole = file.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(damaged[: rng.integers(1, 2 * len(whole))]))
        try:
            open_source(file)
        except DataError:
            refused += 1
    assert refused > 50


# --- scenes, names and unknown things


def test_scenes_are_the_default():
    train, test = open_source(), open_source("scenes", split="test", size=16)
    assert isinstance(train, Scenes)
    assert (len(train), len(test)) == (8000, 2000)
    assert train.load(0)["image"].shape == (3, 32, 32)
    assert test.load(0)["image"].shape == (3, 16, 16)
    assert (train.seed, test.seed) == (0, 1)
    assert open_source(channels=1).load(0)["image"].shape == (1, 32, 32)
    with pytest.raises(DataError, match="scenes has 1 or 3 channels, not 4"):
        open_source(channels=4)


def test_a_folder_called_like_built_in_pictures_is_never_taken_for_them(tmp_path: Path, monkeypatch):
    save(tmp_path / "photos" / "1.png")
    monkeypatch.chdir(tmp_path)
    for data in (Path("photos"), Path("./photos/"), "photos/", "./photos"):
        assert len(open_source(data)) == 1
    with pytest.raises(
        DataError, match="'photos' is the name of built-in pictures and of a folder here: write ./photos"
    ):
        open_source("photos")
    (tmp_path / "scenes").mkdir()
    assert isinstance(open_source(), Scenes)


def test_a_missing_path_names_what_resembles_it(tmp_path: Path, monkeypatch):
    save(tmp_path / "images" / "1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no 'imagse'\. Did you mean images\? Give a folder"):
        open_source("imagse")
    with pytest.raises(DataError, match=r"no 'scene'\. Did you mean scenes\?"):
        open_source("scene")
    with pytest.raises(DataError, match=r"no 'zzz/qqq'\. Give a folder of images, a \.csv"):
        open_source("zzz/qqq")


def test_other_unusable_data_say_what_to_give(tmp_path: Path):
    file = save(tmp_path / "1.png")
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"cannot read .*1\.png as a data set\. Give a folder"):
        open_source(file)
    with pytest.raises(DataError, match="unknown split 'dev': choose 'train' or 'test'"):
        open_source(tmp_path, split="dev")
    with pytest.raises(DataError, match="channels = 0"):
        open_source(tmp_path, channels=0)
    with pytest.raises(DataError, match="no test split: name the test data's own file"):
        open_source(tmp_path / "data.npz", split="test")


def test_fingerprints_follow_names_and_labels(tmp_path: Path):
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / name)
    first = open_source(tmp_path).fingerprint()
    assert first == open_source(tmp_path).fingerprint()
    assert len(first) == 16
    assert pickle.loads(pickle.dumps(open_source(tmp_path))).fingerprint() == first
    save(tmp_path / "b" / "3.png")
    assert open_source(tmp_path).fingerprint() != first
    root = tmp_path
    labels = np.array([0, 1])
    prints = [
        ImageFiles(root, ["ab", "c"], 3).fingerprint(),
        ImageFiles(root, ["a", "bc"], 3).fingerprint(),
        ImageFiles(root, ["ab", "c"], 3, labels, ["x", "y"]).fingerprint(),
        ImageFiles(root, ["ab", "c"], 3, labels[::-1], ["x", "y"]).fingerprint(),
    ]
    assert len(set(prints)) == 4
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"a", b"bc", None)


def test_a_million_paths_are_small_and_pickle_fast():
    table = PathTable(f"class-{i % 1000:04d}/image-{i:07d}.jpg" for i in range(1_000_000))
    assert table[999_999] == "class-0999/image-0999999.jpg"
    assert table[-1] == table[999_999]
    with pytest.raises(IndexError):
        table[1_000_000]
    pickled = pickle.dumps(table, protocol=5)
    assert len(pickled) < 40e6
    copy = pickle.loads(pickled)
    assert (len(copy), copy[123_456]) == (1_000_000, table[123_456])
    held = [item for item in vars(table).values() if not isinstance(item, (bytes, np.ndarray))]
    assert held == [], "an object for each path would be copied into every worker"


# --- torchvision


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch) -> np.ndarray:
    """Two tiny splits in MNIST's own format."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for part, count in (("train", 5), ("t10k", 2)):
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images[:count].tobytes())
        labels = struct.pack(">II", 0x801, count) + bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    return images


def test_torchvision_sets_are_read_from_the_users_folder(mnist):
    pytest.importorskip("torchvision")
    source, test = open_source("torchvision:MNIST"), open_source("torchvision:MNIST", split="test")
    assert (len(source), len(test)) == (5, 2)
    assert torch.equal(source.load(3)["image"], torch.from_numpy(mnist[3]).expand(3, 28, 28))
    assert source.labels.tolist() == [0, 1, 2, 3, 4]
    assert source.classes[3] == "3 - three"
    assert source.name(3) == "torchvision:MNIST:train[3]"
    assert len(open_source("torchvision:MNIST:test")) == 2
    assert source.fingerprint() != test.fingerprint()


def test_torchvision_fetches_only_what_is_missing_and_says_how_to_help(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    asked = []

    def download(self):
        asked.append(self.root)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHVISION_DATA", raising=False)
    with pytest.raises(DataError, match=r"MNIST is not in the folder 'data'.*no route.*TORCHVISION"):
        open_source("torchvision:MNIST")
    assert asked == ["data"]


def test_torchvision_present_is_not_fetched(mnist, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: pytest.fail("fetched"))
    assert len(open_source("torchvision:MNIST")) == 5


def test_unknown_torchvision_names_and_splits_are_explained(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"no data set 'CIFER10'\. Did you mean CIFAR10"):
        open_source("torchvision:CIFER10")
    with pytest.raises(DataError, match="FakeData is not read from a folder"):
        open_source("torchvision:FakeData")
    with pytest.raises(DataError, match=r"STL10: Unknown value 'dev'.*unlabeled"):
        open_source("torchvision:STL10:dev")
    with pytest.raises(DataError, match="Caltech101 has no split but the whole"):
        open_source("torchvision:Caltech101", split="test")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match="pip install torchvision"):
        open_source("torchvision:CIFAR10")


# --- Hugging Face datasets


@pytest.fixture
def hf(tmp_path: Path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def hf_rows(hf, folder: Path):
    files = [str(save(folder / f"{v}.png", v)) for v in (10, 20, 30)]
    features = hf.Features(
        {"note": hf.Value("string"), "photo": hf.Image(), "kind": hf.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"note": ["a", "b", "c"], "photo": files, "kind": [1, 0, None]}
    return hf.Dataset.from_dict(rows, features=features)


def test_a_parquet_file_is_read_through_datasets(hf, tmp_path: Path):
    hf_rows(hf, tmp_path / "files").to_parquet(tmp_path / "rows.parquet")
    source = open_source(f"hf:{tmp_path}/rows.parquet")
    assert [value(source, i) for i in range(3)] == [10, 20, 30]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0, -1]
    assert source.name(1).endswith("20.png")
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()
    with pytest.raises(DataError, match=r"has the splits \['train'\]: choose one with hf:"):
        open_source(f"hf:{tmp_path}/rows.parquet", split="test")


def test_an_image_folder_is_read_through_datasets(hf, tmp_path: Path):
    for name in ("train/cat/1", "train/dog/2", "train/dog/3", "test/dog/4"):
        save(tmp_path / "pets" / f"{name}.png", int(name[-1]))
    source, test = (open_source(f"hf:{tmp_path}/pets", split=s) for s in ("train", "test"))
    assert [value(source, i) for i in range(3)] == [1, 2, 3]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.classes == test.classes == ["cat", "dog"]
    assert value(test, 0) == 4 and not source.undivided


def test_a_data_set_without_a_test_part_tells_its_rows_by_their_bytes(hf, tmp_path: Path):
    hf_rows(hf, tmp_path / "files").to_parquet(tmp_path / "rows.parquet")
    source, files = open_source(f"hf:{tmp_path}/rows.parquet"), open_source(tmp_path / "files")
    assert source.undivided and [source.content(i) for i in range(3)] == [files.content(i) for i in range(3)]
    with pytest.raises(NoTestSplit):
        open_source(f"hf:{tmp_path}/rows.parquet:train", split="test")


def test_a_saved_dataset_is_read_and_damaged_rows_are_bad_samples(hf, tmp_path: Path):
    rows = {"image": [{"bytes": b"no image", "path": "x.jpg"}, None], "label": ["b", "a"]}
    features = hf.Features({"image": hf.Image(), "label": hf.Value("string")})
    hf.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    source = open_source(f"hf:{tmp_path}/saved")
    assert (source.labels.tolist(), source.classes) == ([1, 0], ["a", "b"])
    assert source.name(1) == f"hf:{tmp_path}/saved:train[1]"
    with pytest.raises(BadSample, match="not an image: starts with b'no image'"):
        source.load(0)
    with pytest.raises(BadSample, match="this row has no image"):
        source.load(1)


def opened_hf(hf, tmp_path: Path, rows: dict, options: str = "", **kinds):
    features = hf.Features(kinds)
    hf.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    return open_source(f"hf:{tmp_path}/rows.parquet{options}")


def test_hf_columns_are_chosen_by_name_before_by_order(hf, tmp_path: Path):
    files = [str(save(tmp_path / "files" / f"{v}.png", v)) for v in (10, 20)]
    rows = {"mask": files[::-1], "image": files, "sex": [0, 1], "label": [1, 0]}
    kinds = {"mask": hf.Image(), "image": hf.Image(), "sex": hf.ClassLabel(names=["f", "m"])}
    kinds["label"] = hf.ClassLabel(names=["cat", "dog"])
    source = opened_hf(hf, tmp_path, rows, **kinds)
    assert (value(source, 0), source.classes, source.labels.tolist()) == (10, ["cat", "dog"], [1, 0])
    source = open_source(f"hf:{tmp_path}/rows.parquet?image=mask&label=sex")
    assert (value(source, 0), source.classes, source.labels.tolist()) == (20, ["f", "m"], [0, 1])
    assert open_source(f"hf:{tmp_path}/rows.parquet?label=").labels is None
    with pytest.raises(DataError, match=r"no image column 'imgae'.*Did you mean image"):
        open_source(f"hf:{tmp_path}/rows.parquet?image=imgae")
    with pytest.raises(DataError, match=r"write hf:name\?config"):
        open_source(f"hf:{tmp_path}/rows.parquet?labels=sex")


def test_several_hf_columns_without_a_known_name_are_listed(hf, tmp_path: Path):
    file = str(save(tmp_path / "files" / "1.png"))
    kind = hf.ClassLabel(names=["a", "b"])
    with pytest.raises(DataError, match=r"several image columns, \['left', 'right'\]: choose one with hf:name\?image="):
        opened_hf(hf, tmp_path, {"left": [file], "right": [file]}, left=hf.Image(), right=hf.Image())
    with pytest.raises(DataError, match=r"several label columns, \['sex', 'age'\]: choose one with hf:name\?label="):
        opened_hf(hf, tmp_path, {"image": [file], "sex": [0], "age": [1]}, image=hf.Image(), sex=kind, age=kind)


@pytest.mark.parametrize("kind", ["list of classes", "list of integers", "float"])
def test_hf_labels_that_are_no_single_class_are_refused(hf, tmp_path: Path, kind):
    feature, label = {
        "list of classes": ([hf.ClassLabel(names=["a", "b"])], [0, 1]),
        "list of integers": ([hf.Value("int64")], [0, 1]),
        "float": (hf.Value("float64"), 0.5),
    }[kind]
    file = str(save(tmp_path / "files" / "1.png"))
    with pytest.raises(DataError, match="its column 'label' holds .*, not one class a row: choose another"):
        opened_hf(hf, tmp_path, {"image": [file], "label": [label]}, image=hf.Image(), label=feature)
    assert open_source(f"hf:{tmp_path}/rows.parquet?label=").labels is None


def test_hf_configurations_are_named(hf, tmp_path: Path):
    for name, shade in (("small", 10), ("large", 20)):
        save(tmp_path / "pets" / name / "1.png", shade)
    entries = "".join(f"- config_name: {n}\n  data_files: {n}/*.png\n" for n in ("small", "large"))
    (tmp_path / "pets" / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    assert value(open_source(f"hf:{tmp_path}/pets?config=large"), 0) == 20
    with pytest.raises(DataError, match=r"Choose one with hf:.*pets\?config="):
        open_source(f"hf:{tmp_path}/pets")


def test_unusable_hf_data_are_explained(hf, tmp_path: Path, monkeypatch):
    hf.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"has no image column, only \['text'\]"):
        open_source(f"hf:{tmp_path}/text.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="datasets cannot load"):
        open_source(f"hf:{tmp_path}/broken.parquet")


def test_hf_without_the_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "ssl-train\[datasets\]"'):
        open_source("hf:cifar10")
