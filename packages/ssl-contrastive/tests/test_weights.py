"""Weights in and out: our folders, the authors' checkpoints, timm, torchvision, transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_contrastive import BYOL, MoCo, SimCLR, SimSiam
from ssl_contrastive.config import RECIPES
from ssl_contrastive.convert import LAYOUTS
from ssl_core.batch_norm import BatchNorm
from ssl_core.config import ConfigError
from ssl_core.hub.card import write_card
from ssl_core.hub.layout import WeightsMismatch
from ssl_testing.cards import check_card
from ssl_train.classifier import Classifier
from ssl_train.cli.main import defaults

SMALL: dict[str, Any] = {"backbone": "resnet18", "width": 4, "image_size": 32, "batch_size": 8, "warmup_epochs": 0.0}
VIT = SMALL | {"backbone": "vit", "patch_size": 8, "dim": 64, "depth": 2, "heads": 1}
HEADS = {
    SimCLR: {"projector."},
    MoCo: {"projector.", "key_encoder.", "key_projector.", "queue", "queue_ptr"},
    BYOL: {"projector.", "predictor.", "target_encoder.", "target_projector."},
    SimSiam: {"projector.", "predictor."},
}


def config(method: type, **fields: Any) -> Any:
    own = {"queue": 12, "bn_splits": 2} if method is MoCo else {}
    return method.config_class(**{**SMALL, "projection": 8, **own, **fields})  # type: ignore[attr-defined]


def stirred(method: type, **fields: Any) -> Any:
    """A network whose weights and statistics all have different values."""
    torch.manual_seed(0)
    network = method(config(method, **fields))
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape) / 10)
    return network.eval()


def images(c: int = 3, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (2, c, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fields", [{}, VIT, {"small_stem": True}], ids=["resnet", "vit", "small stem"])
@pytest.mark.parametrize("method", HEADS)
def test_a_folder_has_the_encoder_in_one_file_and_the_heads_in_another(method, fields, tmp_path):
    network = stirred(method, **fields)
    folder = network.save_pretrained(tmp_path)
    encoder, heads = load_file(folder / "model.safetensors"), load_file(folder / "heads.safetensors")
    assert {next(p for p in HEADS[method] if name.startswith(p)) for name in heads} >= HEADS[method] - {"queue_ptr"}
    assert len(encoder) + len(heads) == len(network.state_dict()) + (4 * 2 if fields is VIT else 0)  # q, k and v apart
    again = method.from_pretrained(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert torch.equal(again.encode(images()), network.encode(images()))


def moco_authors(network: MoCo, layers: int) -> dict[str, Tensor]:
    """facebookresearch/moco's names: encoder_q with its head as `fc`, the queue transposed."""
    state = {}
    for name, tensor in network.state_dict().items():
        side = "encoder_k" if name.startswith("key_") else "encoder_q"
        name = name.removeprefix("key_")
        if name.startswith("projector."):
            rest = name.removeprefix("projector.")
            state[f"module.{side}.fc.{rest.removeprefix('0.') if layers == 1 else rest}"] = tensor
        elif name.startswith("encoder."):
            state[f"module.{side}.{name.removeprefix('encoder.')}"] = tensor
        else:
            state[f"module.{name}"] = tensor.T.contiguous() if name == "queue" else tensor
    return state


@pytest.mark.parametrize("layers", [1, 2])
def test_mocos_checkpoint_loads_with_key_encoder_and_queue(layers, tmp_path):
    network = stirred(MoCo, head_layers=layers)
    network.queue_ptr.fill_(5)
    checkpoint = {"epoch": 200, "arch": "resnet50", "state_dict": moco_authors(network, layers), "optimizer": {}}
    torch.save(checkpoint, tmp_path / "moco.pth.tar")
    loaded = MoCo.from_pretrained(tmp_path / "moco.pth.tar")
    assert (loaded.config.head_layers, loaded.config.queue, loaded.config.projection) == (layers, 12, 8)
    assert loaded.config.backbone == "resnet18" and not loaded.config.small_stem
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.encode(images(side=224)), network.encode(images(side=224)))


def test_simsiams_checkpoint_loads_with_its_frozen_bias_in_the_running_mean(tmp_path):
    network = stirred(SimSiam, predictor_hidden=2)
    bias = torch.randn(8)
    state = {}
    for name, tensor in network.state_dict().items():
        part, rest = name.split(".", 1)
        state[
            {"encoder": "module.encoder.", "projector": "module.encoder.fc.", "predictor": "module.predictor."}[part]
            + rest
        ] = tensor
    state["module.encoder.fc.6.bias"] = bias
    torch.save({"state_dict": state, "epoch": 100}, tmp_path / "simsiam.pth")
    loaded = SimSiam.from_pretrained(tmp_path / "simsiam.pth")
    assert (loaded.config.head_layers, loaded.config.projection, loaded.config.predictor_hidden) == (3, 8, 2)
    x = torch.randn(4, network.projector[0].in_features)
    theirs = network.projector[:6](x) @ network.projector[6].weight.T + bias
    expected = (theirs - network.projector[7].running_mean) / (network.projector[7].running_var + 1e-5).sqrt()
    assert torch.allclose(loaded.projector(x), expected, atol=1e-5)
    assert torch.equal(loaded.encode(images()), network.encode(images()))


@pytest.mark.parametrize("method", HEADS)
def test_a_run_can_start_from_torchvisions_and_timms_resnet(method, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    with pytest.warns(UserWarning, match="an encoder without .*projector"):
        loaded = method.from_pretrained(tmp_path / "resnet18.pth", config=config(method, width=64))
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(loaded.encode(x), theirs(x), atol=1e-4)
    for copy, original in (
        ("key_encoder", "encoder"),
        ("target_encoder", "encoder"),
        ("target_projector", "projector"),
    ):
        if hasattr(loaded, copy):
            pairs = zip(getattr(loaded, copy).parameters(), getattr(loaded, original).parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), f"{copy} is no copy of the new {original}"


def test_a_run_that_starts_from_an_encoder_keeps_the_preset(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    line = ["--preset", "demo", "--init", str(tmp_path / "resnet18.pth"), "--data", "photos/"]
    settings = defaults(RECIPES["moco"], line).config
    demo = RECIPES["moco"].preset("demo")
    assert settings == replace(demo, width=64, small_stem=False)

    network = stirred(MoCo, queue=12, temperature=0.5)
    line = ["--preset", "demo", "--init", str(network.save_pretrained(tmp_path / "run"))]
    settings = defaults(RECIPES["moco"], line).config
    assert (settings.queue, settings.width, settings.temperature) == (12, network.config.width, demo.temperature)


def test_mocos_split_batch_norm_is_joined_for_fine_tuning():
    method = stirred(MoCo, bn_splits=2)
    tuned = Classifier.of(method, ["a", "b"])
    norms = [module for module in tuned.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert {type(norm) for norm in norms} == {BatchNorm}
    x = images()
    assert torch.allclose(tuned.eval().encode(x), method.eval().encode(x), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_an_rgb_encoder_loads_with_other_channels(channels, tmp_path):
    folder = BYOL(config(BYOL)).save_pretrained(tmp_path)
    network = BYOL.from_pretrained(folder, in_channels=channels)
    assert network.encode(torch.randn(2, channels, 32, 32)).shape == (2, network.encoder.features)


def test_solo_learns_encoder_loads(tmp_path):
    network = stirred(SimCLR, small_stem=True)
    state = {name.replace("encoder.", "backbone."): t for name, t in network.state_dict().items() if "encoder" in name}
    torch.save({"state_dict": state}, tmp_path / "solo.ckpt")
    with pytest.warns(UserWarning, match="without projector"):
        loaded = SimCLR.from_pretrained(tmp_path / "solo.ckpt")
    assert loaded.config.small_stem and torch.equal(loaded.encode(images()), network.encode(images()))


@pytest.mark.parametrize("fields", [{}, {"backbone": "resnet50"}, VIT], ids=["basic", "bottleneck", "vit"])
def test_transformers_opens_the_export_with_the_same_features(fields, tmp_path):
    transformers = pytest.importorskip("transformers")
    network = stirred(SimCLR, **fields)
    state, values = LAYOUTS["simclr"].exports["transformers"](network.state_dict(), network.config)
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    theirs, found = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    allowed = {"pooler.dense.weight", "pooler.dense.bias"} if fields is VIT else set()
    assert set(found["missing_keys"]) <= allowed and not found["unexpected_keys"]
    x = torch.randn(2, 3, 32, 32)
    out = theirs.eval()(x).last_hidden_state
    features = out[:, 0] if fields is VIT else out.mean((2, 3))
    assert (features - network.encode(x)).abs().max() < 1e-4 * max(1, features.abs().max().item())


@pytest.mark.parametrize("fields", [{"width": 64}, VIT, VIT | {"pool": "mean"}], ids=["resnet", "cls", "mean"])
def test_timm_opens_the_export_with_the_same_features(fields, tmp_path):
    timm = pytest.importorskip("timm")
    network = stirred(SimCLR, **fields)
    state, values = LAYOUTS["simclr"].exports["timm"](network.state_dict(), network.config)
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(state, tmp_path / "model.safetensors")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert (theirs(x) - network.encode(x)).abs().max() < 1e-4 * max(1, theirs(x).abs().max().item())


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        ("transformers", {"small_stem": True}, "small_stem"),
        ("timm", {"small_stem": True, "width": 64}, "ImageNet stem"),
        ("timm", {}, "64 channels wide"),
        ("timm", VIT | {"layer_norm_eps": 1e-12}, "timm has 1e-6"),
    ],
)
def test_an_export_that_the_other_library_cannot_open_is_refused(to, fields, message):
    network = stirred(SimCLR, **fields)
    with pytest.raises(ConfigError, match=message):
        LAYOUTS["simclr"].exports[to](network.state_dict(), network.config)


def test_one_channel_equals_rgb_on_the_repeated_channel_in_both_networks(tmp_path):
    network = stirred(BYOL)
    one_channel = config(BYOL, in_channels=1, mean=(0.0,), std=(1.0,), jitter=(0.4, 0.4, 0.0, 0.0))
    grey = BYOL.from_pretrained(network.save_pretrained(tmp_path), config=one_channel)
    x = torch.randn(2, 1, 32, 32)
    assert torch.allclose(grey.encode(x), network.encode(x.expand(-1, 3, -1, -1)), atol=1e-4)
    target = network.target_encoder(x.expand(-1, 3, -1, -1))
    assert torch.allclose(grey.target_encoder(x), target, atol=1e-4)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"some.weight": torch.zeros(2)}, ConfigError, "neither a ViT nor a ResNet"),
        ({"module.encoder_q.conv1.weight": torch.zeros(4, 3, 7, 7)}, ConfigError, "blocks is not one of"),
        ({"module.encoder_q.conv1.weight": torch.zeros(4)}, ConfigError, "neither a ViT nor a ResNet"),
    ],
)
def test_a_checkpoint_of_another_network_is_an_error(state, error, message, tmp_path):
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    with pytest.raises(error, match=message):
        MoCo.from_pretrained(tmp_path / "other.pth")


def test_another_queue_length_is_a_shape_mismatch(tmp_path):
    network = stirred(MoCo)
    folder = network.save_pretrained(tmp_path)
    with pytest.raises(WeightsMismatch, match=r"queue: \(12, 8\) in the file, \(20, 8\)"):
        MoCo.from_pretrained(folder, config=config(MoCo, queue=20))


@pytest.mark.parametrize(("projection", "queue"), [(12, 12), (12, 20)])
def test_the_queue_of_our_own_folder_is_never_turned_and_the_authors_always_is(tmp_path, projection, queue):
    method = stirred(MoCo, projection=projection, queue=queue)
    own = method.queue.clone()
    loaded = MoCo.from_pretrained(method.save_pretrained(tmp_path / "own"))
    assert torch.equal(loaded.queue, own)
    state, unknown = LAYOUTS["moco"].keymap.to_ours({"module.queue": own.T})
    assert unknown == [] and torch.equal(state["queue"], own)
    state, unknown = LAYOUTS["moco"].keymap.to_ours({"_orig_mod.module.queue": own.T})
    assert unknown == [] and torch.equal(state["queue"], own)


@torch.no_grad()
def test_the_card_of_a_resnet_that_timm_has_too_is_true(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    network = stirred(SimCLR, width=64).eval()
    check_card(network, RECIPES["simclr"], torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), tmp_path / "own")
    header = (tmp_path / "own" / "README.md").read_text()
    assert "library_name: timm\n" in header and "pipeline_tag: image-feature-extraction\n" in header
    opened = transformers.AutoModel.from_pretrained(tmp_path / "own").eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(opened(x).pooler_output, network.encoder(x), atol=1e-5)


def test_the_card_of_another_resnet_says_that_only_we_read_it(tmp_path):
    network = stirred(SimCLR, small_stem=True)
    card = write_card(network.save_pretrained(tmp_path), name="me/own", layout=LAYOUTS["simclr"]).read_text()
    assert "library_name: ssl-contrastive\n" in card and "pipeline_tag" not in card
    assert "No other library reads this folder." in card
