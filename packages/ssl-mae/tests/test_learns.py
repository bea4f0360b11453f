"""A short run learns: its features beat those of the same network at random initialisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core.device import seed_step
from ssl_mae import MAE
from ssl_mae.config import demo
from ssl_mae.views import build
from ssl_train.data.images import ImageArray
from ssl_train.data.scenes import CLASSES, render
from ssl_train.evaluate.linear import linear_probe
from ssl_train.fit import fit
from ssl_train.options import RunOptions


def scenes(seed: int, number: int) -> ImageArray:
    """Built-in pictures of 32 pixels, rendered once."""
    pictures = [render(seed, index, 32) for index in range(number)]
    labels = np.array([picture.label for picture in pictures])
    return ImageArray(np.stack([picture.image for picture in pictures]), 3, "scenes", labels, list(CLASSES))


def probe(network: MAE, train: ImageArray, test: ImageArray) -> float:
    """Accuracy of a linear probe on shape and texture, 16 classes."""
    network.eval()
    with torch.inference_mode():
        features = [network.encode(torch.stack([s.load(i)["image"] for i in range(len(s))])) for s in (train, test)]
    labels = [torch.from_numpy(s.labels) for s in (train, test)]
    return linear_probe(features[0], labels[0], features[1], labels[1]).top1


def learn(folder: Path, seed: int) -> tuple[float, float]:
    """Accuracy before and after 1,500 steps on 4,000 unlabelled pictures, tested on 2,000
    others."""
    train, test = scenes(0, 4000), scenes(1, 2000)
    config = dataclasses.replace(
        demo(),
        dim=64,
        depth=3,
        norm_pix_loss=False,
        batch_size=16,
        base_lr=0.048,
        epochs=6,
        warmup_epochs=0.6,
        seed=seed,
    )
    seed_step(seed)
    network = MAE(config)
    before = probe(network, train, test)
    cpu = torch.device("cpu")
    fit(network, train, build(config), config, folder, run_id="learns", device=cpu, options=RunOptions(workers=0))
    return before, probe(network, train, test)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Steps of a few milliseconds gain nothing from a second thread, and wait for it on busy
    cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_short_run_beats_random_initialisation_on_the_linear_probe(tmp_path):
    """Seeds 0, 1, 2 measured .147 → .213, .174 → .229, .157 → .228: a gain of .064 with a standard
    deviation of .008.

    Chance is .0625. The rounding of another machine draws another gain, so the bound is four
    deviations lower.
    """
    before, after = learn(tmp_path, seed=0)
    assert after > before + 0.03
