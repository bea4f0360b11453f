"""A short run of each method learns something about pictures that it has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_beit import DVAE, BEiT
from ssl_beit.config import demo, demo_dvae
from ssl_beit.measure import measure_beit, measure_dvae
from ssl_beit.views import build_beit, build_dvae
from ssl_core.config import RunOptions
from ssl_core.data.scenes import CLASSES, render
from ssl_core.data.sources import ImageArray
from ssl_core.device import seed_step
from ssl_core.evaluate.linear import linear_probe
from ssl_core.train.fit import fit

CPU = torch.device("cpu")


def scenes(seed: int, number: int) -> ImageArray:
    """Built-in pictures of 32 pixels, rendered once."""
    pictures = [render(seed, index, 32) for index in range(number)]
    labels = np.array([picture.label for picture in pictures])
    return ImageArray(np.stack([picture.image for picture in pictures]), 3, "scenes", labels, list(CLASSES))


@pytest.fixture(scope="module")
def data() -> tuple[ImageArray, ImageArray]:
    return scenes(0, 3000), scenes(1, 1500)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(one_thread, data, tmp_path_factory) -> DVAE:
    """A tokenizer after 470 steps."""
    config = dataclasses.replace(
        demo_dvae(), hidden=8, vocab=64, decoder_init=32, batch_size=32, epochs=5, base_lr=0.016
    )
    seed_step(0)
    network = DVAE(config)
    folder = tmp_path_factory.mktemp("dvae")
    fit(network, data[0], build_dvae(config), config, folder, run_id="a", device=CPU, options=RunOptions(workers=0))
    return network.eval()


def test_decoded_tokens_are_closer_than_the_mean_colour_and_many_are_used(tokenizer, data):
    figures = measure_dvae(tokenizer, data[1])
    print(figures)
    assert figures["psnr"] > figures["psnr_mean_colour"] + 0.5
    assert figures["perplexity"] > 6


def probe(network: BEiT, data: tuple[ImageArray, ImageArray]) -> float:
    """Accuracy of a linear probe on shape and texture, 16 classes."""
    network.eval()
    with torch.inference_mode():
        features = [network.encode(torch.stack([s.load(i)["image"] for i in range(len(s))])) for s in data]
    labels = [torch.from_numpy(s.labels) for s in data]
    return linear_probe(features[0], labels[0], features[1], labels[1]).top1


def test_hidden_tokens_are_predicted_and_features_beat_random_ones(tokenizer, data, tmp_path: Path):
    config = dataclasses.replace(
        demo(), dim=64, depth=3, vocab=64, batch_size=32, base_lr=0.016, epochs=9, warmup_epochs=0.5, tokenizer_hidden=8
    )
    seed_step(0)
    network = BEiT(config)
    network.adopt(tokenizer)
    before = probe(network, data)
    fit(network, data[0], build_beit(config), config, tmp_path, run_id="a", device=CPU, options=RunOptions(workers=0))
    figures, after = measure_beit(network.eval(), data[1]), probe(network, data)
    print(figures, before, after)
    assert figures["accuracy"] > figures["most_frequent"] + 0.05
    assert after > before + 0.03
