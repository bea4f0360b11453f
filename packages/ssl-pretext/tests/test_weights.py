"""Encoders go to transformers and timm and keep their features; errors name bad checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from transformers import AutoModel, ViTModel

from ssl_core.config import ConfigError
from ssl_core.hub.layout import WeightsMismatch
from ssl_core.hub.weights_file import save_weights
from ssl_core.method import load
from ssl_core.pixels import normalize
from ssl_pretext import Colorization, ColorizationConfig, Jigsaw, JigsawConfig, RelativePatch, Rotation, RotationConfig
from ssl_pretext.config import RECIPES
from ssl_train.cli.main import main

VIT: dict[str, Any] = {"backbone": "vit", "image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "heads": 2}
RESNET: dict[str, Any] = {"backbone": "resnet18", "width": 4, "image_size": 32}
TILES: dict[str, Any] = {"puzzle_size": 27, "tile_size": 8, "embedding": 8, "hidden": 16}
SMALL: dict[str, dict[str, Any]] = {
    "rotation": {},
    "jigsaw": {**TILES, "permutations": 20},
    "colorization": {"hidden": 8},
    "relative-patch": TILES,
}

every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)


def drawn(recipe, fields: dict[str, Any]) -> Any:
    """A method with every weight and running statistic drawn anew."""
    torch.manual_seed(0)
    network = load(recipe.method)(load(recipe.config)(**fields, **SMALL[recipe.name]))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and name not in ("bins", "prior"):
                tensor.add_(0.1 * torch.rand_like(tensor))
    return network.eval()


def pixels(s: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, s, s), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seen(network: Any) -> torch.Tensor:
    """What the encoder is given for `pixels()`."""
    if isinstance(network, Colorization):
        return network.lightness(pixels()) / 50 - 1
    return normalize(pixels(), network.config.mean, network.config.std)


@every_recipe
def test_features_are_those_of_the_stage_that_the_config_names(recipe, tmp_path):
    network, maps = drawn(recipe, {**RESNET, "feature_stage": 3}), []
    network.encoder.layer3.register_forward_hook(lambda module, inputs, output: maps.append(output))
    features = network.encode(pixels())
    assert torch.equal(features, maps[0].mean((2, 3))) and features.shape == (2, 16)
    last = network.encoder.layer4.register_forward_hook(lambda module, inputs, output: pytest.fail("not needed"))
    assert torch.equal(network.encode(pixels()), features)
    last.remove()
    assert torch.equal(
        load(recipe.method).from_pretrained(network.save_pretrained(tmp_path)).encode(pixels()), features
    )
    with pytest.raises(ConfigError, match="a ViT has no stages"):
        load(recipe.config)(**VIT, **SMALL[recipe.name], feature_stage=3)


@every_recipe
@pytest.mark.parametrize("fields", [VIT, RESNET, {**RESNET, "small_stem": True}], ids=["vit", "resnet", "small stem"])
def test_what_is_saved_loads_again_with_its_heads(recipe, fields, tmp_path):
    network = drawn(recipe, fields)
    loaded = load(recipe.method).from_pretrained(network.save_pretrained(tmp_path))
    assert loaded.config == network.config
    ours, theirs = network.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(loaded.encode(pixels()), network.encode(pixels()))


@every_recipe
def test_transformers_opens_the_folder_of_a_vit(recipe, tmp_path):
    network = drawn(recipe, VIT)
    theirs, report = AutoModel.from_pretrained(network.save_pretrained(tmp_path), output_loading_info=True)
    assert isinstance(theirs, ViTModel)
    assert {key.partition(".")[0] for key in report.pop("missing_keys")} <= {"pooler"}
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(seen(network)).last_hidden_state[:, 0], network.encode(pixels()), atol=1e-5)


@every_recipe
@pytest.mark.parametrize("fields", [VIT, RESNET], ids=["vit", "resnet"])
def test_exports_to_transformers_and_timm_have_the_same_features(recipe, fields, tmp_path):
    network = drawn(recipe, fields)
    weights = network.save_pretrained(tmp_path / "run")
    # timm has no argument for the width of a ResNet's first stage
    for to, code in (("transformers", 0), ("timm", 2 if fields is RESNET else 0)):
        assert main(RECIPES, ["export", str(weights), str(tmp_path / to), "--to", to]) == code
    with torch.no_grad():
        features, x = network.encode(pixels()), seen(network)
        theirs = AutoModel.from_pretrained(tmp_path / "transformers").eval()(x)
        found = theirs.pooler_output.flatten(1) if fields is RESNET else theirs.last_hidden_state[:, 0]
        assert torch.allclose(found, features, atol=1e-5)
        if fields is RESNET:
            return
        model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        assert torch.allclose(model(x), features, atol=1e-5)


def test_a_colorization_publishes_that_its_encoder_sees_one_channel(tmp_path):
    folder = drawn(RECIPES["colorization"], VIT).save_pretrained(tmp_path)
    assert json.loads((folder / "config.json").read_text())["num_channels"] == 1
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    assert (preprocessor["image_mean"], preprocessor["image_std"], preprocessor["do_convert_rgb"]) == (
        [0.5],
        [0.5],
        False,
    )


def torchvisions(folder: Path) -> tuple[torch.nn.Module, Path]:
    """torchvision's ResNet-18 with random statistics, and its state dict on disk."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if "running" in name:
                tensor.add_(0.1 * torch.rand_like(tensor))
    save_weights(folder / "resnet18.safetensors", theirs.state_dict())
    theirs.fc = torch.nn.Identity()  # type: ignore[assignment]
    return theirs, folder / "resnet18.safetensors"


def test_a_supervised_resnet_of_torchvision_is_a_start_and_its_heads_begin_anew(tmp_path):
    theirs, file = torchvisions(tmp_path)
    with pytest.warns(UserWarning, match="holds an encoder without head: these are initialised anew"):
        network = Rotation.from_pretrained(file)
    with torch.no_grad():
        expected = theirs(normalize(pixels(), network.config.mean, network.config.std))
        assert torch.allclose(network.encode(pixels()), expected, atol=1e-4)


def test_an_encoder_of_colours_sees_grey_the_same_once_it_sees_lightness(tmp_path):
    """The stem is summed over the colours: it treats one channel as it treated a grey picture."""
    theirs, file = torchvisions(tmp_path)
    with pytest.warns(UserWarning, match="without bins, decoder, prior"):
        network = Colorization.from_pretrained(file)
    lightness = torch.rand(2, 1, 32, 32) * 100
    with torch.no_grad():
        expected = theirs((lightness / 50 - 1).expand(-1, 3, -1, -1))
        assert torch.allclose(network.encode(lightness), expected, atol=1e-4)


def test_a_jigsaw_starts_from_the_encoder_of_another_task(tmp_path):
    other = drawn(RECIPES["rotation"], RESNET)
    (folder := other.save_pretrained(tmp_path)).joinpath("heads.safetensors").unlink()
    (folder / "SHA256SUMS").unlink()
    config = JigsawConfig(**RESNET, **SMALL["jigsaw"])
    values = json.loads((folder / "config.json").read_text())
    del values["ssl_core"], values["model_type"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.warns(UserWarning, match="without embed, head, permutations"):
        network = Jigsaw.from_pretrained(folder, config=config)
    assert torch.equal(network.encode(pixels()), other.encode(pixels()))


def test_other_channels_and_sizes_are_adapted(tmp_path):
    network = drawn(RECIPES["rotation"], VIT)
    folder = network.save_pretrained(tmp_path)
    grey = Rotation.from_pretrained(folder, in_channels=1, image_size=48)
    x = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.allclose(grey.encode(x), network.encode(x.expand(-1, 3, -1, -1)), atol=1e-5)


@every_recipe
def test_a_damaged_head_or_encoder_is_listed(recipe, tmp_path):
    from ssl_core.hub.weights_file import load_weights

    folder = drawn(recipe, RESNET).save_pretrained(tmp_path)
    (folder / "SHA256SUMS").unlink()
    state = load_weights(folder / "model.safetensors")
    del state["layer1.0.conv1.weight"]
    state["layer2.0.bn1.bias"] = torch.zeros(3)
    save_weights(folder / "model.safetensors", state | {"odd": torch.zeros(1)})
    with pytest.raises(WeightsMismatch) as refused:
        load(recipe.method).from_pretrained(folder)
    for line in ("missing: encoder.layer1.0.conv1.weight", "unused: odd", "shape: encoder.layer2.0.bn1.bias: (3,)"):
        assert line in str(refused.value)


def test_weights_of_another_architecture_are_refused(tmp_path):
    network = drawn(RECIPES["rotation"], RESNET)
    folder = network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the checkpoint is a resnet18"):
        Rotation.from_pretrained(folder, config=RotationConfig(**VIT))
    save_weights(tmp_path / "text.safetensors", {"embeddings.word_embeddings.weight": torch.zeros(9, 4)})
    for method in (Rotation, Jigsaw, Colorization, RelativePatch):
        with pytest.raises(ConfigError, match="holds neither a ViT nor a ResNet"):
            method.from_pretrained(tmp_path / "text.safetensors")


def test_a_resnet_is_exported_to_transformers_only_with_the_stem_that_it_has(tmp_path, capsys):
    folder = drawn(RECIPES["rotation"], {**RESNET, "small_stem": True}).save_pretrained(tmp_path / "run")
    assert main(RECIPES, ["export", str(folder), str(tmp_path / "out")]) == 2
    assert "ResNetModel has the ImageNet stem only" in capsys.readouterr().err


def test_the_commands_know_the_method_of_a_folder(tmp_path, capsys):
    config = ColorizationConfig(**RESNET, **SMALL["colorization"])
    folder = Colorization(config).save_pretrained(tmp_path / "run")
    assert main(RECIPES, ["info", str(folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("colorization: ")
    assert main(RECIPES, ["info", "--method", "nothing"]) == 2
    assert "there are rotation, jigsaw, colorization, relative-patch" in capsys.readouterr().err


def test_a_config_of_another_task_is_refused(tmp_path):
    folder = drawn(RECIPES["rotation"], RESNET).save_pretrained(tmp_path)
    with pytest.raises((ConfigError, WeightsMismatch)):
        RelativePatch.from_pretrained(folder)
