"""A short run learns: the task on held-out pictures, and features better than untrained ones and raw pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.config import RunOptions
from ssl_core.data.loader import collate
from ssl_core.data.scenes import CLASSES, render
from ssl_core.data.sources import ImageArray
from ssl_core.device import seed_step
from ssl_core.evaluate.linear import linear_probe
from ssl_core.method import Recipe, load
from ssl_core.train.fit import fit
from ssl_pretext.config import COLORIZATION, JIGSAW, RELATIVE_PATCH, ROTATION


def scenes(seed: int, number: int) -> ImageArray:
    """Built-in pictures of 32 pixels lit from anywhere, rendered once."""
    pictures = [render(seed, index, 32, light="anywhere") for index in range(number)]
    labels = np.array([picture.label for picture in pictures])
    return ImageArray(np.stack([picture.image for picture in pictures]), 3, "scenes", labels, list(CLASSES))


@pytest.fixture(scope="module")
def data() -> tuple[ImageArray, ImageArray]:
    return scenes(0, 1500), scenes(1, 1000)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps of a few milliseconds gain nothing from a second thread, and wait for it where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(recipe: Recipe, data: ImageArray, folder: Path, **fields: Any) -> Any:
    config = replace(load(recipe.presets)["demo"](), width=8, warmup_epochs=0.3, batch_size=32, **fields)
    seed_step(config.seed)
    network = load(recipe.method)(config)
    fit(network, data, load(recipe.views)(config), config, folder, run_id="learns", device=torch.device("cpu"),
        options=RunOptions(workers=0))  # fmt: skip
    return network.eval()


@torch.inference_mode()
def asked(recipe: Recipe, network: Any, test: ImageArray) -> float:
    """Accuracy in the task itself on held-out pictures."""
    view = load(recipe.views)(network.config)
    batch = collate([view(test.load(i), np.random.default_rng(i)) for i in range(500)])
    return float(network(batch, 0.0)["accuracy"])


@torch.inference_mode()
def probe(encode: Any, train: ImageArray, test: ImageArray) -> float:
    features = [encode(torch.stack([s.load(i)["image"] for i in range(len(s))])) for s in (train, test)]
    labels = [torch.from_numpy(s.labels) for s in (train, test)]
    return linear_probe(features[0], labels[0], features[1], labels[1]).top1


TASKS = {
    "rotation": (ROTATION, {"epochs": 5}),
    "jigsaw": (JIGSAW, {"epochs": 3, "permutations": 9, "orders_per_image": 4, "hidden": 64}),
    "relative-patch": (RELATIVE_PATCH, {"epochs": 4, "hidden": 64}),
    "colorization": (COLORIZATION, {"epochs": 5}),
}


@pytest.mark.parametrize("name", TASKS)
def test_measure(name, data, tmp_path):
    recipe, fields = TASKS[name]
    import time
    t = time.time()
    network = trained(recipe, data[0], tmp_path, **fields)
    t = time.time() - t
    seed_step(0)
    fresh = load(recipe.method)(network.config).eval()
    print("MEASURE", name, round(t, 1), asked(recipe, fresh, data[1]), asked(recipe, network, data[1]), probe(fresh.encode, *data), probe(network.encode, *data))
