"""Crops of real photographs that installed packages carry."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core.errors import DataError
from ssl_train.data import photos
from ssl_train.data.photos import CLASSES, Photos, write_folder
from ssl_train.data.sources import open_source

if not all(importlib.util.find_spec(name) for name in ("skimage", "sklearn")):
    pytest.skip("needs the extra 'photos'", allow_module_level=True)


def test_every_photograph_is_on_the_disk_and_none_is_fetched(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    photos._half.cache_clear()
    source = Photos(2 * len(CLASSES), "train", 32)
    assert np.bincount(source.labels).tolist() == [2] * len(CLASSES)
    for index in range(len(source)):
        image = source.load(index)["image"]
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.uint8
        assert image.float().std() > 1


def test_crops_depend_on_split_and_index_alone():
    train, test = Photos(40, "train", 24), Photos(40, "test", 24)
    image = train.load(21)["image"]
    assert torch.equal(Photos(100, "train", 24).load(21)["image"], image)
    assert not torch.equal(test.load(21)["image"], image)
    assert train.labels[21] == test.labels[21]
    assert train.classes[train.labels[21]] in train.name(21)
    assert len({s.fingerprint() for s in (train, test, Photos(41, "train", 24))}) == 3
    with pytest.raises(IndexError):
        train.load(40)


def test_train_and_test_halves_share_no_pixel(monkeypatch):
    """Of a picture whose halves are black and white, no crop may hold a trace of the other half."""
    whole = torch.zeros(3, 60, 91, dtype=torch.uint8)
    whole[:, :, 45:] = 255
    monkeypatch.setattr(photos.images, "read_image", lambda file, channels: whole)
    photos._half.cache_clear()
    try:
        for split, value in (("train", 0), ("test", 255)):
            source = Photos(64, split, 40)
            assert all((source.load(i)["image"] == value).all() for i in range(64))
    finally:
        photos._half.cache_clear()


def test_gray_crops_are_standardised():
    source = Photos(160, "train", 32, channels=1)
    images = torch.stack([source.load(i)["image"] for i in range(160)]).float()
    assert images.shape == (160, 1, 32, 32)
    means, stds = images.mean((1, 2, 3)), images.std((1, 2, 3))
    # clipping moves a few of them, those of a bright spot on a flat ground
    assert (means - 128).abs().median() < 1
    assert (stds - 48).abs().median() < 2


def test_a_written_folder_reads_back_with_the_same_labels(tmp_path: Path):
    for split in ("train", "test"):
        write_folder(tmp_path / split, 32, split, 20)
    folder, source = open_source(tmp_path, split="test"), Photos(32, "test", 20)
    assert folder.classes == source.classes
    order = [int(Path(folder.name(i)).stem) for i in range(32)]
    assert np.array_equal(folder.labels, source.labels[order])
    jpeg, crop = folder.load(5)["image"].float(), source.load(order[5])["image"].float()
    assert (jpeg - crop).abs().mean() < 12


def test_open_source_knows_photos():
    train, test = open_source("photos", size=16), open_source("photos", split="test", channels=1)
    assert (len(train), len(test)) == (4000, 1000)
    assert train.load(0)["image"].shape == (3, 16, 16)
    assert test.load(0)["image"].shape == (1, 32, 32)


def test_missing_packages_and_files_are_named(monkeypatch, tmp_path: Path):
    with pytest.raises(DataError, match="splits 'train' and 'test'"):
        Photos(4, "val", 16)
    monkeypatch.setitem(photos.PHOTOGRAPHS, "moon", ("skimage", "data/no_moon.png"))
    with pytest.raises(DataError, match=r"skimage has no data/no_moon\.png: update it"):
        Photos(4, "train", 16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "ssl-train\[photos\]"'):
        Photos(4, "train", 16)
