"""Training: initialisation, several captions, encoders of others as image tower, and that something is learned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_clip import CLIP, CLIPConfig, train
from ssl_clip.config import RECIPES
from ssl_clip.measure import measure
from ssl_clip.pairs import open_pairs
from ssl_core.config import ConfigError
from ssl_core.hub.layout import WeightsMismatch
from ssl_core.hub.weights_file import WeightsError, write_sums
from ssl_train.cli.main import main
from ssl_train.data.loader import TooManyBadSamples
from ssl_train.options import RunOptions

CONFIG = CLIPConfig(
    image_size=16, patch_size=8, dim=32, depth=2, heads=2, text_dim=32, text_depth=1, text_heads=2, embed_dim=16,
    vocab_size=600, eos_token_id=599, context_length=12, activation="gelu", crop_scale=(1.0, 1.0), precision="fp32",
    epochs=1, warmup_epochs=0, batch_size=8, base_lr=0.05, weight_decay=0.01,
)  # fmt: skip
OPTIONS = RunOptions(device="cpu", workers=0, log_every=5)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220), "yellow": (210, 210, 40)}
PLACES = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}


def write_pairs(folder: Path, *, seed: int = 0, each: int = 20, colours: int = 4) -> Path:
    """Noisy grey squares with a patch of a colour in a corner; captions name both."""
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), []
    for colour, rgb in list(COLOURS.items())[:colours]:
        for place, (y, x) in PLACES.items():
            for i in range(each):
                pixels = rng.integers(90, 160, (16, 16, 3))
                pixels[y : y + 8, x : x + 8] = np.array(rgb) + rng.integers(-25, 25, (8, 8, 3))
                name = f"{colour}-{place}-{i}.png".replace(" ", "-")
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
                rows.append(json.dumps({"path": name, "caption": f"a {colour} patch at the {place}"}))
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "pairs.jsonl"


@pytest.mark.parametrize(("loss", "least"), [("clip", 0.8), ("siglip", 0.35)])
def test_new_pictures_find_their_captions_after_a_short_run(loss, least, tmp_path):
    config = dataclasses.replace(CONFIG, loss=loss, epochs=40, warmup_epochs=2, batch_size=32, base_lr=0.03)
    trained = train(config, write_pairs(tmp_path / "train"), tmp_path / "run", options=OPTIONS)
    test = open_pairs(write_pairs(tmp_path / "test", seed=1, each=5), config=config)
    torch.manual_seed(0)
    fresh = CLIP(config).eval()
    fresh.tokenizer = trained.tokenizer
    captions = [f"a {colour} patch at the {place}" for colour in COLOURS for place in PLACES]

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


def test_the_order_of_words_is_measured_on_the_built_in_captions():
    from ssl_clip.measure import order_of_words
    from ssl_clip.tokenizer import Tokenizer

    clip = CLIP(dataclasses.replace(CONFIG, context_length=40)).eval()
    captions = ["a small dotted circle left of a ringed cross", "a large ringed cross above a ringed cross", "a dog"]
    clip.tokenizer = Tokenizer.trained(captions, 600)
    with torch.inference_mode():
        image = clip.encode_text(captions)  # as images that fit their captions best
        found = order_of_words(clip, image, list(enumerate(captions)))
    assert found == {"objects_swapped": 1.0, "relation_reversed": 1.0}
    assert order_of_words(clip, image, [(0, "a dog"), (1, "two cats")]) == {}


def test_weights_start_by_the_papers_rule():
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, dim=192, heads=4, text_dim=128, text_depth=3, depth=3)
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
            assert not linear.bias.any()
    assert clip.text_projection.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert clip.text_model.embeddings.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_captions_longer_than_the_context_are_told_and_stop_the_run(tmp_path):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    config = dataclasses.replace(CONFIG, context_length=6, batch_size=4)
    with pytest.warns(UserWarning, match=r"is unreadable, .*has 7 tokens, 4 fit"), pytest.raises(TooManyBadSamples):
        train(config, data, tmp_path / "run", options=OPTIONS)
    clip = train(dataclasses.replace(config, truncate=True), data, tmp_path / "cut", options=OPTIONS)
    assert clip.tokenize("a red patch at the top left")[0, -1] == 599


def test_a_tokenizer_that_is_given_is_used_and_stays_with_the_weights(tmp_path):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    first = train(CONFIG, data, tmp_path / "first", options=OPTIONS)
    for changes, init in (({"tokenizer": str(tmp_path / "first")}, None), ({}, tmp_path / "first")):
        out = tmp_path / f"run-{init is None}"
        again = train(dataclasses.replace(CONFIG, **changes), data, out, init=init, options=OPTIONS)
        assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    with pytest.raises(ConfigError, match="holds no tokenizer.json"):
        train(dataclasses.replace(CONFIG, tokenizer=str(tmp_path / "data")), data, tmp_path / "no", options=OPTIONS)


# ---------------------------------------------------------------- LiT


@pytest.fixture
def encoder(tmp_path):
    """A ViT of transformers in a folder, and itself."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    vit = transformers.ViTModel(config, add_pooling_layer=False).eval()
    vit.save_pretrained(tmp_path / "vit")
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(statistics))
    return vit


@pytest.mark.parametrize("lock", [True, False])
def test_a_text_tower_learns_on_an_encoder_of_others(lock, encoder, tmp_path):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    config = dataclasses.replace(CONFIG, init_image=str(tmp_path / "vit"), lock_image=lock)
    clip = train(config, data, tmp_path / "run", options=OPTIONS)
    assert (clip.config.tower, clip.config.dim, clip.config.mean) == ("vit", 24, (0.4, 0.5, 0.6))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = encoder(images).last_hidden_state[:, 0]
        assert torch.allclose(clip.encode(images), expected, atol=1e-5) == lock
    again = CLIP.from_pretrained(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(again.encode_image(images), clip.encode_image(images))
        assert torch.equal(again.encode_text("a red patch"), clip.encode_text("a red patch"))
    assert train(config, data, tmp_path / "run", options=OPTIONS).config == clip.config, "the same command goes on"


def test_a_folder_that_is_no_vit_is_refused(encoder, tmp_path):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no ViT's folder: config.json has no 'hidden_size'"):
        train(dataclasses.replace(CONFIG, init_image=str(tmp_path / "other")), data, tmp_path / "no", options=OPTIONS)
    values = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    with pytest.raises(WeightsMismatch, match="is no plain ViT"):
        train(dataclasses.replace(CONFIG, init_image=str(tmp_path / "vit")), data, tmp_path / "no2", options=OPTIONS)


def test_an_image_tower_that_is_not_what_its_checksum_says_is_refused(encoder, tmp_path):
    data = write_pairs(tmp_path / "data", each=3, colours=1)
    write_sums(tmp_path / "vit", ["model.safetensors"])
    file = tmp_path / "vit" / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(WeightsError, match="has changed since it was published"):
        train(dataclasses.replace(CONFIG, init_image=str(tmp_path / "vit")), data, tmp_path / "no", options=OPTIONS)


def test_the_command_trains_on_ones_own_pairs_and_shows_what_it_found(tmp_path, monkeypatch, capsys):
    data = write_pairs(tmp_path / "data", each=5, colours=1)
    monkeypatch.chdir(tmp_path)
    fields = {**dataclasses.asdict(CONFIG), "batch_size": 10}
    Path("tiny.json").write_text(json.dumps(fields))
    command = [
        "train",
        "--data",
        str(data),
        "--config",
        "tiny.json",
        "--out",
        "run",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert main(RECIPES, [*command, "--accumulate", "2"]) == 0
    shown = capsys.readouterr().out
    assert "image to text: R@1" in shown and "20 samples" in shown
    assert "a red patch at the top left" in json.loads(Path("run/figures/captions.json").read_text())["search.png"]
    assert json.loads(Path("run/evaluation.json").read_text())["measured"]["retrieval"]
