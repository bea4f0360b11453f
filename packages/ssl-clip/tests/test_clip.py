"""CLIP: embeddings and logits, how weights start, and what texts may be."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ssl_clip import CLIP, train
from ssl_clip.config import demo, rn50, vit_b32
from ssl_clip.tokenizer import TextError
from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_train.data.loader import TooManyBadSamples
from ssl_train.optim import build_optimizer


def test_embeddings_have_length_one_and_logits_are_scaled(model, images):
    clip = model()
    with torch.no_grad():
        image, text = clip.encode_image(images()), clip.encode_text(["red", "a green picture"])
        assert torch.allclose(image.norm(dim=1), torch.ones(3)) and torch.allclose(text.norm(dim=1), torch.ones(2))
        assert torch.allclose(clip.logits(images(), ["red", "a green picture"]), image @ text.T / 0.07, atol=1e-5)
    sigmoid = model(loss="siglip")
    with torch.no_grad():
        logits = sigmoid.logits(images(), "red")
        cosine = sigmoid.encode_image(images()) @ sigmoid.encode_text("red").T
        assert torch.allclose(logits, 10 * cosine - math.log(32767), atol=1e-5)


def test_what_stands_behind_the_end_of_a_text_changes_nothing(model):
    clip = model()
    ids = clip.tokenize("a red picture")
    changed = ids.clone()
    changed[0, 6:] = 7
    with torch.no_grad():
        assert torch.equal(clip.encode_text(ids), clip.encode_text(changed))
        changed[0, 2] = 7
        assert not torch.equal(clip.encode_text(ids), clip.encode_text(changed))


def test_the_scale_stays_at_or_below_100(model):
    clip = model()
    with torch.no_grad():
        clip.logit_scale.fill_(9.0)
    clip.after_step(0.5)
    assert clip.logit_scale.exp().item() == pytest.approx(100)


def test_bad_texts_are_told(model):
    clip = model()
    with pytest.raises(TextError, match="is empty"):
        clip.encode_text(["red", " "])
    with pytest.raises(TextError, match="tokens, 10 fit"):
        clip.encode_text("red " * 30)
    clip.tokenizer = None
    with pytest.raises(InputError, match="this model has no tokenizer"):
        clip.encode_text("red")
    with pytest.raises(ValueError, match=r"input_ids must be integers \(b, up to 12\)"):
        clip.encode_text(torch.zeros(1, 13, dtype=torch.int64))


def test_a_resnet_does_not_accumulate(small):
    clip = CLIP(
        dataclasses.replace(small, tower="resnet", image_size=32, patch_size=32, dim=8, heads=2, stages=(1, 1, 1, 1))
    )
    part = {"views": [torch.zeros(2, 3, 32, 32)], "input_ids": torch.full((2, 12), 599)}
    with pytest.raises(InputError, match="batch norm sees each micro-batch alone"):
        clip({"micro_batches": [part, part]}, 0.0)


def test_weights_start_by_the_papers_rule(trainable):
    torch.manual_seed(0)
    config = dataclasses.replace(trainable, dim=192, heads=4, text_dim=128, text_depth=3, depth=3)
    clip = CLIP(config)
    for tower, d in ((clip.vision_model, 192), (clip.text_model, 128)):
        layer = tower.encoder.layers[1]
        expected = {
            "self_attn.qkv": d**-0.5,
            "self_attn.out_proj": (6 * d) ** -0.5,
            "mlp.fc1": (2 * d) ** -0.5,
            "mlp.fc2": (6 * d) ** -0.5,
        }
        for name, std in expected.items():
            linear = layer.get_submodule(name)
            assert linear.weight.std().item() == pytest.approx(std, rel=0.05), name
            if name.startswith("mlp"):  # as a Linear draws them: uniform in ±1/√fan-in
                edge = linear.in_features**-0.5
                assert linear.bias.abs().max() <= edge and linear.bias.std().item() == pytest.approx(
                    edge / 3**0.5, rel=0.15
                )
            else:
                assert not linear.bias.any()
    assert clip.text_projection.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert clip.text_model.embeddings.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize(("config", "eps"), [(vit_b32(), 1e-6), (rn50(), 1e-8), (demo(), 1e-8)])
def test_adamw_has_the_papers_epsilon_of_the_tower(config, eps):
    small = dataclasses.replace(config, dim=8, heads=2, depth=1, text_depth=1, epochs=40)
    optimizer = build_optimizer(CLIP(small), small)
    assert {group["eps"] for group in optimizer.param_groups} == {eps}


def test_captions_longer_than_the_context_are_told_and_stop_the_run(tmp_path, write_pairs, trainable, options):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    config = dataclasses.replace(trainable, context_length=6, batch_size=4)
    with pytest.warns(UserWarning, match=r"is unreadable, .*has 7 tokens, 4 fit"), pytest.raises(TooManyBadSamples):
        train(config, data, tmp_path / "run", options=options)
    clip = train(config, data, tmp_path / "cut", truncate=True, options=options).model
    assert clip.tokenize("a red patch at the top left")[0, -1] == 599


def test_a_tokenizer_that_is_given_is_used_and_stays_with_the_weights(tmp_path, write_pairs, trainable, options):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    first = train(trainable, data, tmp_path / "first", options=options).model
    for changes, init in (({"tokenizer": str(tmp_path / "first")}, None), ({}, tmp_path / "first")):
        out = tmp_path / f"run-{init is None}"
        again = train(trainable, data, out, init=init, options=options, **changes).model
        assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    with pytest.raises(ConfigError, match="holds no tokenizer.json"):
        train(dataclasses.replace(trainable, tokenizer=str(tmp_path / "data")), data, tmp_path / "no", options=options)
