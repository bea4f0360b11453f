"""A short run of the tokenizer learns. BEiT's run is in `tools/learns.py`."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ssl_beit import DVAE
from ssl_beit.config import demo_dvae
from ssl_beit.views import build_dvae
from ssl_train.data.loader import collate
from ssl_train.data.scenes import render
from ssl_train.optim import build_optimizer


def test_training_on_64_pictures_lowers_the_loss_and_uses_several_codes():
    config = dataclasses.replace(demo_dvae(), hidden=8, vocab=32, decoder_init=16, epochs=60, batch_size=64)
    torch.manual_seed(0)
    network, view = DVAE(config), build_dvae(config)
    images = [torch.from_numpy(render(0, i, 32).image).permute(2, 0, 1) for i in range(64)]
    data = collate([view({"image": image}, np.random.default_rng(i)) for i, image in enumerate(images)])
    optimizer = build_optimizer(network, config)
    losses = []
    for step in range(40):
        out = network(data, step / 40)
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        network.after_step(step / 40)
        losses.append(out["loss"].item())
    assert losses[-1] < losses[0] - 0.2
    assert out["codes_used"].item() > 2 / 32
    assert out["perplexity"].item() > 1.5
