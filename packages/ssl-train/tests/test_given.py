"""Data that a program gives: what a sample may be, labels, fingerprints, and what is refused."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ssl_core.errors import BadSample, DataError, NoTestSplit
from ssl_train.data.given import Given, open_given
from ssl_train.data.loader import Batches, Plan
from ssl_train.data.sources import open_images, open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 11, 3), dtype=np.uint8)  # n h w c
TENSORS = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)  # n c h w


class Samples(Dataset):
    """Whatever samples a test gives; counts how often they are read."""

    def __init__(self, samples, **beside):
        self.samples, self.reads = samples, 0
        vars(self).update(beside)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads += 1
        return self.samples[index]


def given(data, channels=3) -> Given:
    return open_given(data, channels=channels)


@pytest.mark.parametrize(
    "make",
    [
        lambda: list(PIXELS),
        lambda: PIXELS,
        lambda: TENSORS,
        lambda: TENSORS / 255,  # torchvision's ToTensor
        lambda: list((TENSORS / 255).bfloat16() * 0 + TENSORS / 255),
        lambda: (PIXELS / 255).astype(np.float32),
        lambda: [Image.fromarray(x) for x in PIXELS],
        lambda: Samples([(x, 3) for x in TENSORS]),
        lambda: Samples([{"image": Image.fromarray(x), "label": 3} for x in PIXELS]),
        lambda: TensorDataset(TENSORS),
    ],
)
def test_pictures_of_every_kind_give_the_same_pixels(make):
    source = given(make())
    assert len(source) == 12
    for index in (0, 11):
        assert torch.equal(source.load(index)["image"], TENSORS[index])
    source.load(0)["image"].zero_()
    assert torch.equal(source.load(0)["image"], TENSORS[0]), "a sample is a copy"


def test_grey_pictures_and_deep_ones_are_taken():
    assert torch.equal(given(PIXELS[..., 0]).load(1)["image"], TENSORS[1, :1].expand(3, -1, -1))
    assert torch.equal(given(TENSORS[:, 0]).load(1)["image"], TENSORS[1, :1].expand(3, -1, -1))
    deep = PIXELS.astype(np.uint16) * 257
    assert given(deep).load(0)["image"].dtype == torch.uint16


def test_a_list_of_paths_is_read_as_files(tmp_path, monkeypatch):
    for i, x in enumerate(PIXELS):
        Image.fromarray(x).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.iterdir())
    source = given(files)
    assert [source.name(i) for i in range(12)] == [str(file) for file in files]
    monkeypatch.chdir(tmp_path)
    assert torch.equal(given(["3.png"]).load(0)["image"], TENSORS[3])
    assert torch.equal(given([(file, 0) for file in files]).load(0)["image"], source.load(0)["image"])


@pytest.mark.parametrize("ending", ["png", "tif", "gif"])
def test_opened_pictures_are_read_alike_by_several_processes_and_keep_what_was_drawn_into_them(tmp_path, ending):
    for i, x in enumerate(PIXELS):
        Image.fromarray(x).save(tmp_path / f"{i}.{ending}")
    pictures = [Image.open(file) for file in sorted(tmp_path.iterdir())]
    expected = [given(sorted(tmp_path.iterdir())).load(i)["image"] for i in range(12)]
    batches = Batches(given(pictures), lambda sample, rng: sample, Plan(12, 4, 1, 0), workers=2)
    with batches.watched():
        found = {int(i): x for (b,) in batches for i, x in zip(b["index"], b["image"], strict=True)}
    assert not batches.bad and all(torch.equal(found[i], expected[i]) for i in range(12))
    pictures[0].paste(0, (0, 0, 11, 9))
    assert given(pictures).load(0)["image"].flatten(1).unique(dim=1).shape == (3, 1)
    for picture in pictures:
        picture.close()


def test_labels_beside_the_samples_are_taken_without_reading_them():
    data = Samples([(x, i % 3) for i, x in enumerate(TENSORS)], targets=[i % 3 for i in range(12)], classes=list("abc"))
    source = given(data)
    assert data.reads <= 2 and source.classes == ["a", "b", "c"] and source.labels.tolist() == [0, 1, 2] * 4
    part = given(Subset(Subset(data, range(2, 12)), [0, 5]))
    assert part.labels.tolist() == [2, 1] and part.classes == ["a", "b", "c"]


def test_labels_are_read_where_the_samples_have_others_than_stand_beside():
    changed = given(Samples([(x, 9 - i % 3) for i, x in enumerate(TENSORS)], targets=[i % 3 for i in range(12)]))
    assert changed.labels.tolist() == [9, 8, 7] * 4


@pytest.mark.parametrize(
    ("labels", "found", "classes"),
    [
        ([0, 2, 1] * 4, [0, 2, 1] * 4, ["0", "1", "2"]),
        ([torch.tensor(1), np.int64(0)] * 6, [1, 0] * 6, ["0", "1"]),
        (["dog", "cat"] * 6, [1, 0] * 6, ["cat", "dog"]),
        ([None, 1, 0] * 4, [-1, 1, 0] * 4, ["0", "1"]),
        ([True, False] * 6, [1, 0] * 6, ["0", "1"]),
    ],
)
def test_labels_are_numbers_or_words_and_none_is_no_label(labels, found, classes):
    source = given(Samples(list(zip(TENSORS, labels, strict=True))))
    assert source.labels.tolist() == found and source.classes == classes


def test_labels_that_are_no_classes_are_left_out_with_a_warning():
    with pytest.warns(
        UserWarning, match=r"label of Samples\[0\] is of type Tensor torch.uint8 \(3, 9, 11\), not a class"
    ):
        assert given(Samples([(x, x) for x in TENSORS])).labels is None
    assert given(Samples(list(TENSORS))).labels is None


def test_reading_many_samples_for_their_labels_is_said(monkeypatch):
    monkeypatch.setattr("ssl_train.data.given.MANY", 12)
    with pytest.warns(UserWarning, match="all 12 samples of Samples are read once .* `targets`"):
        given(Samples([(x, 0) for x in TENSORS]))


def test_a_fingerprint_tells_pixels_labels_and_length_apart_and_lasts():
    data = Samples([(x, 0) for x in TENSORS])
    other = Samples([(x, 0) for x in TENSORS.flip(3)])
    marked = Samples([(x, 1) for x in TENSORS])
    prints = [given(d).fingerprint() for d in (data, other, marked, Subset(data, range(11)), list(TENSORS))]
    assert len(set(prints)) == 5
    assert given(Samples([(x, 0) for x in TENSORS.clone()])).fingerprint() == prints[0]


def test_a_dataset_that_gives_other_pixels_each_time_is_refused():
    class Noisy(Samples):
        def __getitem__(self, index):
            return self.samples[index] // random.randint(1, 200)

    with pytest.raises(DataError, match=r"Noisy\[\d+\] has other pixels each time .* leave random transforms out"):
        given(Noisy(TENSORS)).fingerprint()


def test_what_a_dataset_raises_is_a_bad_sample_with_its_reason():
    class Torn(Samples):
        def __getitem__(self, index):
            if index < 5:
                raise OSError("the archive is torn")
            return self.samples[index]

    source = given(Torn(TENSORS))
    with pytest.raises(BadSample, match="OSError: the archive is torn"):
        source.load(0)
    with pytest.raises(DataError, match=r"none of 5 samples of Torn .* the first: Torn\[0\]: OSError: the archive"):
        given(Torn(TENSORS[:5]))
    with pytest.raises(
        DataError, match=r"11 channels and cannot give 3.*an array is \(h, w, c\), a tensor \(c, h, w\)"
    ):
        given(PIXELS.transpose(0, 3, 1, 2))


class Endless(IterableDataset):
    def __iter__(self):
        yield TENSORS[0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "data is of type int: give a Dataset"),
        (iter(TENSORS), "data is of type"),
        (Endless(), "data is of type Endless: give a Dataset of torch .with a length"),
        (DataLoader(TensorDataset(TENSORS)), "data is of type DataLoader: give a Dataset"),
        ([], "the list that was given as data is empty"),
        ({"images": PIXELS}, r"a dict with 'images'.*\{'train': …, 'test': …\}"),
        (
            Samples([(x, 0) for x in TENSORS - 128.0]),
            r"Samples\[0\] .*\(Tensor torch.float32 \(3, 9, 11\), int\): .*Normalize",
        ),
        (
            Samples(list(TENSORS.long())),
            r"Samples\[0\] is of type Tensor torch.int64 \(3, 9, 11\): a sample is a picture",
        ),
        (Samples([{"img": x} for x in TENSORS]), r"Samples\[0\] is of type dict with \['img'\]: .* \{'image': picture"),
        (Samples(["cat"] * 3), "none of 3 samples of Samples can be read, .*no such file"),
        (Samples([()] * 3), r"Samples\[0\] is of type \(\)"),
        (Samples([None] * 3), r"Samples\[0\] is of type NoneType"),
        (Samples([SimpleNamespace(image=1)]), "is of type SimpleNamespace"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_used_is_named_with_what_can(data, said):
    with pytest.raises(DataError, match=said):
        given(data)


def test_a_source_is_taken_as_it_is_and_a_dict_has_two_parts():
    source = open_source("scenes")
    assert given(source) is source
    config = SimpleNamespace(in_channels=3, size=(32, 32))
    both = {"train": TENSORS, "test": TENSORS[:4]}
    assert len(open_images(both, config=config)) == 12 and len(open_images(both, config=config, split="test")) == 4
    for alone in (TENSORS, {"train": TENSORS}):
        with pytest.raises(NoTestSplit, match="'test'"):
            open_images(alone, config=config, split="test")
