"""What is learned, measured on pictures and combinations of objects that were not trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ssl_clip import CLIP, train
from ssl_clip.config import demo
from ssl_clip.measure import measure
from ssl_clip.pairs import open_pairs


@pytest.mark.parametrize(("loss", "epochs", "least"), [("clip", 40, 0.8), ("siglip", 60, 0.35)])
def test_new_pictures_find_their_captions_after_a_short_run(
    loss, epochs, least, tmp_path, write_pairs, trainable, options
):
    config = dataclasses.replace(trainable, loss=loss, epochs=epochs, warmup_epochs=2, batch_size=32, base_lr=0.03)
    pairs = write_pairs(tmp_path / "train")
    trained = train(config, pairs, tmp_path / "run", held_out=0.0, options=options).model
    test = open_pairs(write_pairs(tmp_path / "test", seed=1, each=5), config=config)
    torch.manual_seed(0)
    fresh = CLIP(config).eval()
    fresh.tokenizer = trained.tokenizer
    captions = list(dict.fromkeys(test.captions()))

    def accuracy(clip: CLIP) -> float:
        """Of pictures that were not trained on, over all sixteen captions."""
        images = torch.stack([test.load(i)["image"] for i in range(len(test))])
        with torch.inference_mode():
            found = clip.logits(images, captions).argmax(1).tolist()
        return float(np.mean([captions[k] == test.texts(i)[0] for i, k in enumerate(found)]))

    assert accuracy(trained) > least > 0.25 > accuracy(fresh)
    figures = measure(trained, trained.attach(test))
    assert figures["texts"] == 16 and figures["retrieval"]["image_to_text"]["R@1"] > least
    assert any("image to text: R@1" in line for line in figures["summary"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_held_out_combinations_are_found_far_above_chance(tmp_path):
    config = demo()
    trained = train(config, None, tmp_path / "run", device="cpu", workers=0, log_every=50).model
    torch.manual_seed(0)
    fresh = CLIP(config)
    fresh.tokenizer = trained.tokenizer
    test = open_pairs(None, config=config, split="test")
    ours, before = (measure(clip, clip.attach(test)) for clip in (trained, fresh))
    print((tmp_path / "run" / "metrics.jsonl").read_text(), *ours["summary"], *before["summary"], sep="\n")
    assert ours["zero_shot"]["top1"] > 0.9 > 0.15 > before["zero_shot"]["top1"]
    for way in ours["retrieval"].values():
        assert way["R@1"] > 0.5
    assert min(ours["order"].values()) > 0.95
