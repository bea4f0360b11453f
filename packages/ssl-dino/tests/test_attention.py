"""The command that draws attention, masks, colours and matches, and the figures of a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.errors import InputError
from ssl_dino import DINO, DINOConfig, DINOv2, DINOv2Config
from ssl_dino.attention import draw_matches, drawn, fit
from ssl_dino.config import RECIPES
from ssl_dino.show import show
from ssl_dino.verbs import VERBS, Attention
from ssl_train.cli.main import main
from ssl_train.data.scenes import Scenes

VIT: Any = {"image_size": 16, "patch_size": 4, "dim": 24, "depth": 2, "heads": 3}
TINY = DINOConfig(**VIT, prototypes=10, head_hidden=12, bottleneck=6, local_crops=0, local_size=4)
RESNET: Any = {"backbone": "resnet18", "width": 4, "small_stem": True, "image_size": 16}
TINY_RESNET = DINOConfig(**RESNET, local_size=8, prototypes=10)


def test_matches_are_drawn_over_two_pictures_beside_each_other():
    features = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(3, 12, 16, dtype=torch.uint8)
    sheet = draw_matches(image, features, image, features.roll((1, 2), (0, 1)))
    assert sheet.size == (32, 12) and np.asarray(sheet).any(), "every patch has a match, so there are lines"


def test_pictures_are_cut_to_whole_patches():
    image = torch.zeros(3, 30, 45, dtype=torch.uint8)
    assert fit(image, 14, None).shape == (3, 28, 42)
    assert fit(image, 14, 56).shape == (3, 56, 84)
    assert fit(torch.zeros(3, 960, 1205, dtype=torch.uint8), 16, None).shape == (3, 480, 592)
    assert fit(torch.zeros(3, 960, 1205, dtype=torch.uint8), 16, 960).shape == (3, 960, 1200)
    with pytest.raises(InputError, match="smaller than a patch of 32: give --size"):
        fit(image, 32, None)


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 42, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", ["dino", "dinov2", "registers"])
def test_the_command_draws_every_head_masks_colours_and_matches(kind, tmp_path, capsys):
    torch.manual_seed(0)
    if kind == "dino":
        DINO(TINY).save_pretrained(tmp_path / "weights")
    else:
        registers = 4 if kind == "registers" else 0
        DINOv2(DINOv2Config(**VIT, registers=registers)).save_pretrained(tmp_path / "weights")
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 1)
    line = ["attention", str(first), "--weights", str(tmp_path / "weights"), "--match", str(second), "--device", "cpu"]
    method = ["--method", "dinov2"] if kind == "registers" else []  # otherwise the folder says it
    assert main(RECIPES, [*line, "--out", str(tmp_path / "out"), *method], verbs=VERBS) == 0
    names = ["a-attention.png", "a-mask.png", "a-pca.png", "a-b-match.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    with Image.open(tmp_path / "out" / "a-attention.png") as grid:
        assert grid.width > 5 * 40 * 3, "the picture, three heads and their mean, enlarged"
    with Image.open(tmp_path / "out" / "a-b-match.png") as match:
        assert match.size == (80, 28)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_pictures_of_any_bands_are_drawn_as_three(channels):
    size = dict(mean=(0.5,) * channels, std=(0.2,) * channels, in_channels=channels)
    method = DINO(replace(TINY, **size)).eval()
    image = torch.randint(256, (channels, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = method.patch_features(image[None])[0]
        rows = drawn(method, image, patches, Attention(("a.png",), "weights"))
    shapes = {name: tuple(row.shape) for name, row in rows.items()}
    assert shapes == {"attention": (5, 3, 8, 12), "mask": (5, 3, 8, 12), "pca": (2, 3, 8, 12)}
    bands = [0, 0, 0] if channels < 3 else [0, 1, 2]
    assert all(torch.equal(row[0], image[bands] / 255) for row in rows.values())
    assert rows["attention"][1:].amax((1, 2, 3)).tolist() == [1.0] * 4
    sheet = np.asarray(draw_matches(image, patches, image[:, :4], patches[:1]))
    assert sheet.shape == (8, 24, 3) and not sheet[-1, -1].any(), "below the lower picture is black"


def test_a_matched_picture_is_read_and_run_once(tmp_path, monkeypatch):
    import ssl_train.data.images as images

    torch.manual_seed(0)
    DINO(TINY).save_pretrained(tmp_path / "weights")
    paths = [str(picture(tmp_path / name, seed)) for seed, name in enumerate(["a.png", "b.png", "c.png"])]
    read, ran, read_image, patch_features = [], [], images.read_image, DINO.patch_features
    monkeypatch.setattr(images, "read_image", lambda path, *rest: (read.append(path), read_image(path, *rest))[1])
    monkeypatch.setattr(DINO, "patch_features", lambda self, x: (ran.append(len(x)), patch_features(self, x))[1])
    line = ["attention", *paths[:2], "--weights", str(tmp_path / "weights"), "--match", paths[2], "--device", "cpu"]
    assert main(RECIPES, [*line, "--out", str(tmp_path / "out")], verbs=VERBS) == 0
    assert read == paths and ran == [1, 1, 1]
    assert (tmp_path / "out" / "a-c-match.png").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["a.png", "b.png", "sub/a.jpg", "--weights", "weights"], "two pictures are called 'a'"),
        (["missing.png", "--weights", "weights"], "missing.png"),
        (["a.png", "--weights", "weights", "--max-pixels", "100"], "raise the limit with --max-pixels"),
        (["a.png", "--weights", "weights", "--mass", "2"], "mass = 2.0: must be above 0 and at most 1"),
        (["a.png", "--weights", "weights", "--block", "7"], "block 7"),
        (["a.png", "--weights", "nothing"], "nothing"),
        (["a.png", "--weights", "resnet"], "resnet18 has no attention"),
    ],
)
def test_an_error_names_what_cannot_be_drawn_and_exits_with_2(line, message, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    DINO(TINY).save_pretrained(tmp_path / "weights")
    DINO(TINY_RESNET).save_pretrained(tmp_path / "resnet")
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    line = [f"./{word}" if word in ("weights", "nothing", "resnet") else word for word in line]
    try:
        code = main(RECIPES, ["attention", *line, "--device", "cpu"], verbs=VERBS)
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and message in capsys.readouterr().err


def test_the_figures_of_a_run_show_attention_of_a_vit_only(tmp_path):
    torch.manual_seed(0)
    scenes = Scenes(4, seed=0, size=16)
    with torch.no_grad():
        captions = show(DINO(TINY).eval(), scenes, tmp_path)
        assert list(captions) == ["attention.png", "patches.png"]
        assert all((tmp_path / name).is_file() for name in captions)
        assert list(show(DINO(TINY_RESNET).eval(), scenes, tmp_path)) == ["patches.png"]


def test_help_lists_the_commands_without_importing_torch(capsys):
    import subprocess

    command = "import sys; from ssl_dino.__main__ import main; sys.argv = ['ssl-dino']"
    code = f"{command}\ntry: main()\nexcept SystemExit: assert 'torch' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "attention" in ended.stdout and "methods (--method): dino, dinov2" in ended.stdout
