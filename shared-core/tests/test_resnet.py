"""ResNets and ViTs as backbones: torchvision's numbers, timm's and transformers' files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from ssl_core.config import BackboneConfig, ConfigError, TrainConfig
from ssl_core.encoder import build_encoder
from ssl_core.hub.encoders import RESNET_TRANSFORMERS, encoder_layout
from ssl_core.hub.keymap import KeyMap, prefixed
from ssl_core.hub.layout import WeightsMismatch
from ssl_core.hub.pretrained import Pretrained
from ssl_core.resnet import LAYERS, ResNet


@dataclass(frozen=True, kw_only=True)
class Config(BackboneConfig, TrainConfig):
    pass


COPIES = {"target.": "encoder.", "target_projector.": "projector."}
LAYOUT = encoder_layout(Config, heads=("projector.",), copies=COPIES)


class Method(nn.Module, Pretrained):
    config_class = Config
    layout = f"{__name__}:LAYOUT"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder, self.target = build_encoder(config), build_encoder(config)
        self.projector, self.target_projector = nn.Linear(2, 2), nn.Linear(2, 2)


RESNET = Config(backbone="resnet18", width=8, image_size=40, patch_size=3)
VIT = Config(dim=32, depth=2, heads=2, image_size=32, patch_size=8)


def images(side=40, channels=3):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def stir(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.rand(tensor.shape, generator=generator) / 10)
    return module.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_a_resnet_is_torchvisions(name):
    theirs = getattr(torchvision.models, name)(num_classes=1)
    theirs.fc = nn.Identity()
    stir(theirs).double()
    ours = ResNet(name).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = images().double()
    assert (ours(x) - theirs(x)).abs().max() <= 1e-10
    assert ours.patch_features(images()).shape == (2, 2, 2, ours.features)


def test_the_initialisation_is_torchvisions_with_branches_that_begin_at_zero_where_asked():
    torch.manual_seed(0)
    ours = ResNet("resnet50").zero_residuals()
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(zero_init_residual=True).state_dict()
    spread = {key: (value.std(), theirs[key].std()) for key, value in ours.state_dict().items() if value.ndim == 4}
    assert all(abs(a / b - 1) < 0.1 for a, b in spread.values())
    assert all(float(v.abs().sum()) == 0 for k, v in ours.state_dict().items() if k.endswith("bn3.weight"))


def test_the_small_stem_keeps_the_resolution():
    network = ResNet("resnet18", width=8, small_stem=True).eval()
    assert network.conv1.kernel_size == (3, 3) and network.conv1.padding == (1, 1)
    assert network.patch_features(images(32)).shape == (2, 4, 4, 64)


def test_another_number_of_channels_is_refused_by_the_forward_pass():
    with pytest.raises(ValueError, match="images must be"):
        ResNet("resnet18", width=4)(images(channels=4))


def test_a_resnet_takes_any_size_and_a_vit_whole_patches():
    assert Config(backbone="resnet18", image_size=41).size == (41, 41)
    with pytest.raises(ConfigError, match="divisible by the patch size"):
        Config(image_size=41)


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_our_own_folder_comes_back_whole(config, tmp_path):
    method = stir(Method(config))
    loaded = Method.from_pretrained(method.save_pretrained(tmp_path))
    assert loaded.config == config
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_timm_opens_what_we_publish(tmp_path):
    method = stir(Method(dataclasses.replace(RESNET, width=64)))
    theirs = timm.create_model(f"local-dir:{method.save_pretrained(tmp_path)}", pretrained=True).eval()
    assert (theirs(images()) - method.encoder(images())).abs().max() <= 1e-5


def test_torchvisions_file_is_an_initialisation_whose_heads_start_anew(tmp_path):
    theirs = stir(torchvision.models.resnet18(num_classes=10))
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    with pytest.warns(UserWarning, match="without projector"):
        method = Method.from_pretrained(tmp_path / "resnet18.pth")
    assert method.config.backbone == "resnet18" and method.config.width == 64
    theirs.fc = nn.Identity()
    assert (method.encoder(images()) - theirs(images())).abs().max() <= 1e-5
    assert torch.equal(method.target(images()), method.encoder(images()))
    assert torch.equal(method.target_projector.weight, method.projector.weight)


def test_a_checkpoint_with_some_of_the_heads_is_refused(tmp_path):
    folder = Method(RESNET).save_pretrained(tmp_path)
    heads = load_file(folder / "heads.safetensors")
    save_file({key: heads[key] for key in heads if key != "projector.bias"}, folder / "heads.safetensors")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(WeightsMismatch, match=r"missing: projector\.bias"):
        Method.from_pretrained(folder)


def test_transformers_vit_and_resnet_folders_load(tmp_path):
    vit = stir(ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                                  image_size=32, patch_size=8), add_pooling_layer=False))  # fmt: skip
    vit.save_pretrained(tmp_path / "vit")
    with pytest.warns(UserWarning, match="are initialised anew"):
        method = Method.from_pretrained(tmp_path / "vit")
    assert (method.encoder(images(32)) - vit(images(32)).last_hidden_state[:, 0]).abs().max() <= 1e-5
    resnet = stir(ResNetModel(ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
                                           layer_type="basic")))  # fmt: skip
    resnet.save_pretrained(tmp_path / "resnet")
    with pytest.warns(UserWarning, match="are initialised anew"):
        method = Method.from_pretrained(tmp_path / "resnet")
    expected = resnet(images()).pooler_output.flatten(1)
    assert (method.encoder(images()) - expected).abs().max() <= 1e-5


def test_our_resnet_goes_to_transformers():
    encoder = stir(ResNet("resnet18"))
    theirs = ResNetModel(ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
                                      layer_type="basic")).eval()  # fmt: skip
    theirs.load_state_dict(KeyMap(rows=RESNET_TRANSFORMERS).to_theirs(encoder.state_dict())[0])
    assert (theirs(images()).pooler_output.flatten(1) - encoder(images())).abs().max() <= 1e-5
    assert prefixed(RESNET_TRANSFORMERS, ours="encoder.")[0][0] == "encoder.conv1.weight"


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_channels_and_size_adapt_in_the_encoder_and_its_copies(config, tmp_path):
    folder = stir(Method(config)).save_pretrained(tmp_path)
    method = Method.from_pretrained(folder, in_channels=1, image_size=64)
    plain = Method.from_pretrained(folder, image_size=64)
    grey = images(64, 1)
    for name in ("encoder", "target"):
        gap = getattr(method, name)(grey) - getattr(plain, name)(grey.expand(-1, 3, -1, -1))
        assert gap.abs().max() <= 1e-4


def test_another_architecture_than_the_checkpoints_is_named(tmp_path):
    folder = Method(RESNET).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a resnet18"):
        Method.from_pretrained(folder, config=VIT)
    with pytest.raises(ConfigError, match="neither a ViT nor a ResNet"):
        LAYOUT.infer({"weight": torch.zeros(2)})
