from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_core.errors import BadSample
from ssl_train.evaluate.features import Features, extract, extract_each, histogram, pixels


class Pictures:
    """n random pictures in memory, of which those in `bad` cannot be read."""

    classes = ("a", "b", "c")

    def __init__(self, n: int, shape=(3, 6, 5), bad=(), labelled=True) -> None:
        rng = np.random.default_rng(n)
        self.images = torch.from_numpy(rng.integers(0, 256, (n, *shape), dtype=np.uint8))
        self.labels = rng.integers(-1, 3, n) if labelled else None
        self.bad, self.loads = set(bad), 0

    def __len__(self) -> int:
        return len(self.images)

    def load(self, i: int) -> dict:
        self.loads += 1
        if i in self.bad:
            raise BadSample("truncated file")
        return {"image": self.images[i]}

    def name(self, i: int) -> str:
        return f"pictures/{i}.png"


def view(sample: dict, rng: object) -> dict:
    assert rng is None, "an evaluation draws nothing"
    return {"views": [sample["image"]]}


def flat(images: Tensor) -> Tensor:
    return images.flatten(1).float()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 16])
def test_every_sample_counts_once_and_in_order_whatever_the_batch_size(batch_size):
    for n in range(1, 18):
        source = Pictures(n)
        got = extract(flat, source, view, batch_size=batch_size)
        assert torch.equal(got.features, flat(source.images))
        assert got.labels is not None and got.labels.tolist() == source.labels.tolist()
        assert list(got.names) == [f"pictures/{i}.png" for i in range(n)]
        assert source.loads == n


def test_workers_change_nothing():
    source = Pictures(23, bad=[4])
    with pytest.warns(UserWarning, match="1 of 23"):
        alone = extract(flat, source, view, batch_size=4)
    with pytest.warns(UserWarning, match="1 of 23"):
        helped = extract(flat, source, view, batch_size=4, workers=2)
    assert torch.equal(alone.features, helped.features)
    assert list(alone.names) == list(helped.names) and alone.skipped == helped.skipped


def test_an_unreadable_sample_is_left_out_and_named():
    source = Pictures(11, bad=[0, 6, 7, 8])  # with batches of 3, one batch is all bad
    with pytest.warns(UserWarning, match=r"4 of 11 .*pictures/0.png: truncated file"):
        got = extract(flat, source, view, batch_size=3)
    kept = [1, 2, 3, 4, 5, 9, 10]
    assert torch.equal(got.features, flat(source.images[kept]))
    assert got.labels is not None and got.labels.tolist() == source.labels[kept].tolist()
    assert [name for name, _ in got.skipped] == [f"pictures/{i}.png" for i in (0, 6, 7, 8)]


@pytest.mark.parametrize("n", [0, 3])
def test_a_source_without_a_readable_sample_is_an_error(n):
    with pytest.raises(ValueError, match=f"none of {n} samples can be read"):
        extract(flat, Pictures(n, bad=range(n)), view)


class Method(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(90, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Dropout(0.5)
        self.seen: list[bool] = []

    def encode(self, images: Tensor) -> Tensor:
        self.seen.append(any(part.training for part in self.modules()))
        return self.frozen(self.norm(self.linear(flat(images) / 255)))

    def forward(self, images: Tensor) -> Tensor:
        return self.encode(images)


def test_a_module_runs_in_eval_mode_and_gets_its_modes_back():
    torch.manual_seed(0)
    method, source = Method().train(), Pictures(9)
    method.frozen.eval()
    before = method.norm.running_mean.clone()
    for encode in (method, method.encode):
        first = extract(encode, source, view, batch_size=4)
        assert torch.allclose(first.features, extract(encode, source, view, batch_size=9).features, atol=1e-6)
    assert not any(method.seen)
    assert method.training and method.norm.training and not method.frozen.training
    assert torch.equal(before, method.norm.running_mean)


def test_modes_come_back_after_an_error():
    method = Method().train()
    with pytest.raises(RuntimeError):
        extract(method.encode, Pictures(3, shape=(3, 7, 7)), view)
    assert all(part.training for part in method.modules())


def test_features_are_float32_under_autocast_and_plain_tensors():
    def encode(images: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return linear(flat(images))

    torch.manual_seed(0)
    linear, source = nn.Linear(90, 4), Pictures(6)
    plain = extract(encode, source, view)
    with torch.autocast("cpu", torch.bfloat16):
        cast = extract(encode, source, view)
        assert linear(flat(source.images)).dtype == torch.bfloat16
    assert torch.equal(plain.features, cast.features)
    assert not plain.features.requires_grad and not plain.features.is_inference()


def test_the_global_random_stream_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    extract(flat, Pictures(5), view)
    assert torch.equal(torch.rand(3), expected)


def test_broken_features_are_refused():
    source = Pictures(4)
    with pytest.raises(ValueError, match="NaN"):
        extract(lambda x: flat(x) * torch.tensor([1.0, torch.nan] * 45), source, view)
    for wrong in (lambda x: flat(x)[:1], lambda x: x.float(), lambda x: flat(x).sum(1)):
        with pytest.raises(ValueError, match=r"\(b, d\)"):
            extract(wrong, source, view)


def test_several_encoders_read_the_data_once():
    source = Pictures(10)
    got = extract_each({"flat": flat, "raw pixels": pixels, "colour histogram": histogram}, source, view, batch_size=4)
    assert source.loads == 10
    assert list(got) == ["flat", "raw pixels", "colour histogram"]
    for name, encode in (("flat", flat), ("raw pixels", pixels), ("colour histogram", histogram)):
        alone = extract(encode, source, view, batch_size=4)
        assert torch.equal(got[name].features, alone.features)


def test_progress_is_shown_on_request(capsys):
    extract(flat, Pictures(3), view, progress=True)
    assert "features" in capsys.readouterr().err
    extract(flat, Pictures(3), view)
    assert capsys.readouterr().err == ""


def test_raw_pixels_are_the_pixels():
    source = Pictures(5)
    got = extract(pixels, source, view)
    assert torch.equal(got.features, source.images.flatten(1).float() / 255)


def test_raw_pixels_of_large_images_are_averaged():
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    got = pixels(images).reshape(2, 3, 32, 32)
    assert got[1, 2, 3, 5].item() == pytest.approx(images[1, 2, 6:8, 15:18].double().mean().item() / 255, abs=1e-6)


def test_colour_histogram_counts_as_a_loop_does():
    source = Pictures(3, shape=(3, 5, 4))
    got = extract(histogram, source, view).features
    assert got.shape == (3, 64)
    for image, row in zip(source.images, got, strict=True):
        counts = [0] * 64
        for r, g, b in image.flatten(1).T.tolist():
            counts[r // 64 * 16 + g // 64 * 4 + b // 64] += 1
        assert row.tolist() == pytest.approx([count / 20 for count in counts])


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channel_counts_are_binned_on_their_own(channels):
    images = Pictures(3, shape=(channels, 5, 4)).images
    got = histogram(images)
    assert got.shape == (3, 16 * channels)
    for image, row in zip(images, got, strict=True):
        counts = [0] * (16 * channels)
        for c in range(channels):
            for value in image[c].flatten().tolist():
                counts[16 * c + value // 16] += 1
        assert row.tolist() == pytest.approx([count / 20 for count in counts])


def test_features_survive_a_file(tmp_path):
    with pytest.warns(UserWarning, match="left out"):
        first = extract(flat, Pictures(7, bad=[2]), view)
    for features in (first, extract(flat, Pictures(4, labelled=False), view)):
        features.save(tmp_path / "features")  # no suffix is added
        again = Features.load(tmp_path / "features")
        assert torch.equal(again.features, features.features)
        assert list(again.names) == list(features.names)
        assert list(again.classes) == list(features.classes)
        assert list(again.skipped) == list(features.skipped)
        if features.labels is None:
            assert again.labels is None
        else:
            assert torch.equal(again.labels, features.labels)


def test_the_file_is_plain_numpy(tmp_path):
    Features(torch.ones(2, 3), torch.tensor([1, 0]), ["ä", "b"]).save(tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        assert set(file) == {"features", "paths", "labels", "skipped"}
        assert file["features"].dtype == np.float32 and file["labels"].dtype == np.int64
        assert file["paths"].tolist() == ["ä", "b"]
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="no file of features"):
        Features.load(tmp_path / "other.npz")


def test_rows_names_and_labels_have_to_agree():
    x, y = torch.ones(2, 3), torch.tensor([1, 0])
    with pytest.raises(ValueError, match="3 names"):
        Features(x, y, ["a", "b", "c"])
    with pytest.raises(ValueError, match="float32"):
        Features(x.double(), y, ["a", "b"])
    with pytest.raises(ValueError, match="int64"):
        Features(x, y.int(), ["a", "b"])


def test_labelled_rows_are_those_with_a_label():
    features = Features(torch.eye(3), torch.tensor([2, -1, 0]), list("abc"))
    x, y = features.labelled()
    assert torch.equal(x, torch.eye(3)[[0, 2]]) and y.tolist() == [2, 0]
    for labels in (None, torch.tensor([-1, -1, -1])):
        with pytest.raises(ValueError, match="no sample has a label"):
            Features(torch.eye(3), labels, list("abc")).labelled()


def test_a_readable_source_warns_of_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extract(flat, Pictures(3), view)
    assert caught == []
