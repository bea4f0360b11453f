"""The command line of both methods, the command `tokenize`, and the figures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_beit import DVAE, BEiT, BEiTConfig, DVAEConfig
from ssl_beit.config import RECIPES
from ssl_beit.measure import jpeg, measure_beit, measure_dvae, psnr
from ssl_beit.show import GREY, hidden, predictions, show_beit
from ssl_beit.verbs import VERBS
from ssl_train.cli.main import main
from ssl_train.data.images import ImageArray
from ssl_train.data.scenes import render

TOKENIZER = DVAEConfig(image_size=32, hidden=8, blocks=1, decoder_init=4, vocab=12)
SIZES = {"patch_size": 16, "dim": 16, "depth": 1, "heads": 2}
TOKENS = {"vocab": 12, "mask_patches": 6, "mask_block": 2}
SMALL = BEiTConfig(image_size=64, **SIZES, **TOKENS, tokenizer_hidden=8, tokenizer_blocks=1, tokenizer_init=4)


def command(*arguments: object) -> int:
    return main(RECIPES, [str(argument) for argument in arguments], VERBS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer, a BEiT, ten pictures, and the same with a torn one."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("folders")
    DVAE(TOKENIZER).save_pretrained(root / "dvae")
    BEiT(SMALL).save_pretrained(root / "beit")
    for name in ("images", "whole"):
        (root / name).mkdir()
        for i in range(10):
            Image.fromarray(render(0, i, 48).image).save(root / name / f"{i}.png")
    (root / "images" / "torn.png").write_bytes(b"\x89PNG")
    return root


def source(number: int = 40, size: int = 64) -> ImageArray:
    return ImageArray(
        np.stack([render(1, i, size).image for i in range(number)]), 3, "scenes", np.arange(number), ["a"]
    )


def test_images_become_grids_of_ids_and_a_picture(folders, tmp_path, capsys):
    assert command("tokenize", folders / "dvae", "--data", folders / "images", "--out", tmp_path / "t.npz") == 0
    out = capsys.readouterr().out
    assert "10 grids of 4 x 4 tokens" in out and "left out" in out and "torn.png" in out
    with np.load(tmp_path / "t.npz") as tokens:
        assert tokens["ids"].shape == (10, 4, 4) and 0 <= tokens["ids"].min() and tokens["ids"].max() < 12
        assert len(tokens["paths"]) == 10
        with Image.open(folders / "images" / str(tokens["paths"][0]).split("/")[-1]) as image:
            first = np.array(image.resize((32, 32), Image.Resampling.BICUBIC))
    expected = DVAE.from_pretrained(folders / "dvae").tokenize(torch.from_numpy(first).permute(2, 0, 1)[None])
    with np.load(tmp_path / "t.npz") as tokens:
        assert (torch.from_numpy(tokens["ids"][0]) == expected[0]).float().mean() > 0.8
    with Image.open(tmp_path / "t.png") as sheet:
        assert sheet.width > 2 * 3 * 96


def test_tokens_are_written_to_the_file_that_was_named(folders, tmp_path):
    assert command("tokenize", folders / "dvae", "--data", folders / "images", "--out", tmp_path / "grids.tokens") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grids.png", "grids.tokens"]
    with np.load(tmp_path / "grids.tokens") as tokens:
        assert tokens["ids"].shape == (10, 4, 4)


def test_beits_own_tokenizer_is_used_and_the_size_may_be_chosen(folders, tmp_path, capsys):
    assert command("tokenize", folders / "beit", "--out", tmp_path / "t.npz", "--data", folders / "images") == 0
    assert "10 grids of 4 x 4 tokens" in capsys.readouterr().out
    line = ("tokenize", folders / "dvae", "--out", tmp_path / "t.npz", "--data", folders / "images", "--size")
    assert command(*line, 64) == 0
    assert "10 grids of 8 x 8 tokens" in capsys.readouterr().out
    assert command(*line, 30) == 2
    assert "size = 30: must be a multiple of 8" in capsys.readouterr().err


def test_tokenize_leaves_out_what_is_too_large_and_tells_its_result_as_json(folders, tmp_path, capsys):
    line = ("tokenize", folders / "dvae", "--data", folders / "whole", "--out", tmp_path / "t.npz")
    assert command(*line, "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["grid"]) == (10, [4, 4]) and "--tokenizer" in result["next"][0]
    assert command(*line, "--max-pixels", 100) == 2
    said = capsys.readouterr()
    assert "raise the limit with --max-pixels" in said.out and "no readable image" in said.err


def test_tokenize_says_what_cannot_be_used(folders, tmp_path, capsys):
    assert command("tokenize", "./nothing") == 2
    assert "nothing" in capsys.readouterr().err
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"\x89PNG")
    assert command("tokenize", folders / "dvae", "--data", tmp_path / "torn", "--out", tmp_path / "t.npz") == 2
    alone = BEiT(dataclasses.replace(SMALL, vocab=0, tokenizer_hidden=0)).save_pretrained(tmp_path / "alone")
    assert command("tokenize", alone, "--data", folders / "images") == 2
    assert "hold no tokenizer" in capsys.readouterr().err


def test_beit_is_trained_measured_and_shown(folders, tmp_path, capsys):
    settings = {**SIZES, **TOKENS, "image_size": 32, "patch_size": 8, "tokenizer": str(folders / "dvae")}
    settings |= {"epochs": 1, "warmup_epochs": 0, "batch_size": 4}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    line = ("train", "--data", folders / "whole", "--config", tmp_path / "c.json", "--out", tmp_path / "run")
    assert command(*line, "--device", "cpu", "--workers", 0) == 0
    assert "hidden tokens predicted" in capsys.readouterr().out
    assert (tmp_path / "run" / "figures" / "predictions.png").is_file()
    assert command("show", tmp_path / "run", "--data", folders / "whole", "--device", "cpu") == 0
    assert command("show", folders / "dvae", "--data", folders / "whole", "--out", tmp_path / "f") == 0
    assert (tmp_path / "f" / "reconstructions.png").is_file()


def test_the_overview_names_both_methods_and_the_command(capsys):
    assert command("--help") == 0
    out = capsys.readouterr().out
    assert "tokenize" in out and "methods (--method): beit, dvae" in out and "dalle" in out


def test_a_perfect_prediction_decodes_to_the_tokens_of_the_whole_picture(folders, monkeypatch):
    beit = BEiT.from_pretrained(folders / "beit")
    images = torch.stack([source(4).load(i)["image"] for i in range(4)])
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    small = torch.nn.functional.interpolate(images.float(), 32).byte()
    monkeypatch.setattr("ssl_beit.show.small", lambda method, x: small)
    tokens = beit.tokenize(small)
    answer = torch.nn.functional.one_hot(tokens.flatten(1), 12).float()
    monkeypatch.setattr(beit, "logits", lambda x, m: answer)
    shown = predictions(beit, images, mask)
    assert shown.shape == (4, 3, 3, 64, 64)
    assert torch.equal(shown[:, 0], images / 255)
    assert torch.equal(shown[:, 2, :, ::2, ::2], beit.decode(tokens))
    patches = hidden(beit, images, mask)[:, 1].unfold(2, 16, 16).unfold(3, 16, 16)  # b c 4 4 p p
    assert torch.equal((patches == GREY).all(-1).all(-1).all(1).flatten(1), mask)


def test_weights_without_a_tokenizer_show_what_they_can(tmp_path):
    beit = BEiT(dataclasses.replace(SMALL, tokenizer_hidden=0)).eval()
    assert list(show_beit(beit, source(), tmp_path)) == ["masked.png"]
    assert measure_beit(beit, source()).keys() == {"summary"}
    alone = BEiT(dataclasses.replace(SMALL, vocab=0, tokenizer_hidden=0)).eval()
    assert list(show_beit(alone, source(), tmp_path)) == ["originals.png"]


def test_predictions_are_measured_against_the_most_frequent_token(folders):
    beit = BEiT.from_pretrained(folders / "beit")
    figures = measure_beit(beit, source())
    assert 0 <= figures["accuracy"] <= 1 and 0 < figures["most_frequent"] <= 1
    with torch.no_grad():
        beit.lm_head.weight.zero_()
        beit.lm_head.bias.zero_()
        frequent = beit.tokenize(torch.stack([source(40, 32).load(i)["image"] for i in range(40)])).flatten().bincount()
        beit.lm_head.bias[frequent.argmax()] = 1
    figures = measure_beit(beit, source())
    assert figures["accuracy"] == pytest.approx(figures["most_frequent"], abs=0.05)


def test_the_tokenizer_is_measured_against_mean_colour_and_jpeg(folders):
    figures = measure_dvae(DVAE.from_pretrained(folders / "dvae"), source())
    assert figures["bits"] == pytest.approx(16 * np.log2(12))
    assert 0 < figures["codes_used"] <= 1 and 1 <= figures["perplexity"] <= 12
    assert figures["psnr_jpeg"] > figures["psnr_mean_colour"] - 3
    assert len(figures["summary"]) == 2


def test_psnr_and_jpeg_are_what_they_say():
    a = torch.zeros(1, 3, 4, 4)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    images = torch.stack([source(16).load(i)["image"] for i in range(16)])
    low, high = jpeg(images, 100), jpeg(images, 8000)
    assert low[2] == 1 and high[1] >= 8000
    assert high[0] > low[0] + 5
    assert jpeg(images[:, :1], 100)[2] == 1
