"""Weights in and out: transformers' folders in both spellings, timm's, the authors', our own."""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_core.config import ConfigError
from ssl_core.hub.layout import WeightsMismatch, layout_of
from ssl_dino import DINO, DINOConfig, DINOv2, DINOv2Config

VIT: Any = {"image_size": 16, "patch_size": 4, "dim": 24, "depth": 2, "heads": 3}
HEAD: Any = {"prototypes": 10, "head_hidden": 12, "bottleneck": 6}
RUN: Any = {"local_crops": 1, "local_size": 8, "epochs": 4, "warmup_epochs": 1, "batch_size": 4}
TINY = DINOConfig(**VIT, **HEAD, **RUN, drop_path=0.0)
NO_HEADS = "holds an encoder without center, teacher.head: these are initialised anew"


def random_(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with all its tensors drawn anew, positions and tokens too, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator)) if "var" in name else buffer.zero_()
    return module.eval()


def images(h: int, w: int | None = None, c: int = 3, b: int = 2) -> Tensor:
    return torch.randn(b, c, h, w or h, generator=torch.Generator().manual_seed(1))


def vit(**options):
    from transformers import ViTConfig, ViTModel

    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "intermediate_size": 96}
    config = ViTConfig(**{**sizes, "num_hidden_layers": 2, "num_attention_heads": 3, **options})
    return random_(ViTModel(config, add_pooling_layer=False))


def dinov2(registers: int = 0, **options):
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = dict(image_size=28, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
    if registers:
        config = Dinov2WithRegistersConfig(**sizes, **options, num_register_tokens=registers)
        return random_(Dinov2WithRegistersModel(config))
    return random_(Dinov2Model(Dinov2Config(**sizes, **options)))


def write(model, folder, *, in_memory: bool):
    """Save a transformers model under the names on disk, or those that it has in memory."""
    model.save_pretrained(folder)
    if in_memory:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def dino_of(path, **options) -> DINO:
    with pytest.warns(UserWarning, match=NO_HEADS):
        return DINO.from_pretrained(path, **options)


@pytest.mark.parametrize("in_memory", [False, True], ids=["on disk", "in memory"])
@torch.no_grad()
def test_transformers_vit_folders_give_their_features_at_any_size(in_memory, tmp_path):
    theirs = vit()
    ours = dino_of(write(theirs, tmp_path, in_memory=in_memory))
    assert ours.config.layer_norm_eps == 1e-12 and ours.config.pos_interp == "size"
    for h, w in ((16, 16), (24, 24), (8, 20)):
        x = images(h, w)
        expected = theirs(x, interpolate_pos_encoding=True).last_hidden_state
        assert torch.allclose(ours.encode(x), expected[:, 0], atol=1e-5)
        assert torch.allclose(ours.patch_features(x).flatten(1, 2), expected[:, 1:], atol=1e-5)


@pytest.mark.parametrize("in_memory", [False, True], ids=["on disk", "in memory"])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
@torch.no_grad()
def test_transformers_dinov2_folders_give_their_features_at_any_size(registers, swiglu, in_memory, tmp_path):
    theirs = dinov2(registers, use_swiglu_ffn=swiglu)
    ours = DINOv2.from_pretrained(write(theirs, tmp_path, in_memory=in_memory))
    assert (ours.config.registers, ours.config.swiglu) == (registers, swiglu)
    for h, w in ((28, 28), (16, 16), (12, 20)):
        x = images(h, w)
        expected = theirs(x).last_hidden_state
        assert torch.allclose(ours.encode(x), expected[:, 0], atol=1e-5)
        assert torch.allclose(ours.patch_features(x).flatten(1, 2), expected[:, 1 + registers :], atol=1e-5)


@torch.no_grad()
def test_attention_maps_equal_those_that_transformers_gives():
    for theirs, registers, ours in _pairs():
        theirs.set_attn_implementation("eager")
        x = images(28 if isinstance(ours, DINOv2) else 16)
        attentions = theirs(x, output_attentions=True).attentions
        for block in (0, -1):
            expected = attentions[block][:, :, 0, 1 + registers :]
            assert torch.allclose(ours.attention_maps(x, block).flatten(2), expected, atol=1e-5)


def _pairs():
    import tempfile
    from pathlib import Path

    for registers, theirs in ((0, vit()), (0, dinov2()), (4, dinov2(4))):
        with tempfile.TemporaryDirectory() as folder:
            path = write(theirs, Path(folder), in_memory=False)
            small = theirs.config.model_type == "vit"
            yield theirs, registers, dino_of(path) if small else DINOv2.from_pretrained(path)


@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_our_dinov2_folder_opens_in_transformers_and_comes_back_with_the_same_bits(registers, tmp_path):
    from transformers import AutoModel

    theirs = dinov2(registers)
    before = load_file(write(theirs, tmp_path / "theirs", in_memory=False) / "model.safetensors")
    ours = DINOv2.from_pretrained(tmp_path / "theirs")
    after = load_file(ours.save_pretrained(tmp_path / "ours") / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    opened, info = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.allclose(opened.eval()(images(28)).last_hidden_state[:, 0], ours.encode(images(28)), atol=1e-5)
    opened.save_pretrained(tmp_path / "again")
    again = DINOv2.from_pretrained(tmp_path / "again")
    assert again.config == ours.config
    assert torch.equal(again.encode(images(28)), ours.encode(images(28)))


@torch.no_grad()
def test_our_dino_folder_opens_in_transformers(tmp_path):
    from transformers import AutoModel

    torch.manual_seed(0)
    ours = DINO(TINY).eval()
    random_(ours.teacher)
    opened, info = AutoModel.from_pretrained(ours.save_pretrained(tmp_path), output_loading_info=True)
    assert all(key.startswith("pooler.") for key in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.allclose(opened.eval()(images(16)).last_hidden_state[:, 0], ours.encode(images(16)), atol=1e-5)


@torch.no_grad()
def test_timm_vit_folders_load_and_exports_open_in_timm(tmp_path):
    import timm

    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 1}
    model = timm.create_model("vit_small_patch16_224", **sizes, num_classes=0, dynamic_img_size=True)
    _save_timm(random_(model), tmp_path, mean=[0.5, 0.5, 0.5])
    ours = dino_of(tmp_path)
    assert ours.config.mean == (0.5, 0.5, 0.5)
    for x in (images(16), images(24, 12)):
        assert torch.allclose(ours.encode(x), model(x), atol=2e-5)
    state, config = layout_of(ours).exports["timm"](ours.state_dict(), ours.config)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.allclose(opened(images(16)), ours.encode(images(16)), atol=2e-5)


def _save_timm(model, folder, **pixels):
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": pixels}))


@pytest.mark.parametrize("size", ["small", "giant"])
@pytest.mark.parametrize("registers", ["", "_reg4"])
@torch.no_grad()
def test_timm_dinov2_weights_load_and_exports_open_in_timm(size, registers, tmp_path):
    import timm

    sizes = {"img_size": 28, "patch_size": 4, "embed_dim": 192, "depth": 2, "num_heads": 3}
    name = f"vit_{size}_patch14{registers}_dinov2"
    model = timm.create_model(name, **sizes, num_classes=0, dynamic_img_size=True)
    _save_timm(random_(model), tmp_path, mean=[0.4, 0.4, 0.4], std=[0.2, 0.2, 0.2])
    ours = DINOv2.from_pretrained(tmp_path)
    assert ours.config.mean == (0.4, 0.4, 0.4) and ours.config.pos_interp == "antialias"
    assert ours.config.registers == (4 if registers else 0) and ours.config.swiglu == (size == "giant")
    for x in (images(28), images(16, 24)):
        features = model.forward_features(x)
        assert torch.allclose(ours.encode(x), features[:, 0], atol=2e-5)
        patches = ours.patch_features(x).flatten(1, 2)
        assert torch.allclose(patches, features[:, model.num_prefix_tokens :], atol=2e-5)
    state, config = layout_of(ours).exports["timm"](ours.state_dict(), ours.config)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.allclose(opened(images(28)), ours.encode(images(28)), atol=2e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@torch.no_grad()
def test_what_is_exported_to_timm_comes_back_with_its_heads_and_pooling(pool, tmp_path):
    v2 = DINOv2Config(image_size=16, patch_size=4, dim=24, depth=2, heads=3, registers=2, pool=pool)
    for ours in (DINO(replace(TINY, heads=3, pool=pool)).eval(), DINOv2(v2).eval()):
        random_(ours.encoder)
        state, config = layout_of(ours).exports["timm"](ours.state_dict(), ours.config)
        save_file(state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        back = dino_of(tmp_path) if isinstance(ours, DINO) else DINOv2.from_pretrained(tmp_path)
        assert (back.config.heads, back.config.pool) == (3, pool)
        assert torch.allclose(back.encode(images(16)), ours.encode(images(16)), atol=1e-6)


@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_dinov2s_encoder_is_read_out_of_transformers_classifiers(registers, tmp_path):
    from transformers import Dinov2ForImageClassification, Dinov2WithRegistersForImageClassification

    kind = Dinov2WithRegistersForImageClassification if registers else Dinov2ForImageClassification
    theirs = random_(kind(dinov2(registers).config)).eval()
    theirs.save_pretrained(tmp_path)
    ours = DINOv2.from_pretrained(tmp_path)
    expected = theirs.base_model(images(28)).last_hidden_state[:, 0]
    assert torch.allclose(ours.encode(images(28)), expected, atol=1e-5)


@torch.no_grad()
def test_a_checkpoint_cut_down_to_its_teacher_is_read_as_student_too(tmp_path):
    method = random_(DINO(TINY))
    torch.save({"teacher": authors_checkpoint(method, ddp=True)["teacher"]}, tmp_path / "teacher.pth")
    with pytest.warns(UserWarning, match="the student starts as its copy"):
        loaded = DINO.from_pretrained(tmp_path / "teacher.pth", config=TINY)
    assert torch.equal(loaded.teacher.head.mlp[0].weight, method.teacher.head.mlp[0].weight)
    assert torch.equal(loaded.student.head.mlp[0].weight, method.teacher.head.mlp[0].weight)
    assert not loaded.center.any() and not loaded.new_heads


def authors_checkpoint(method: DINO, *, ddp: bool) -> dict:
    """The dict that the authors' `main_dino.py` saves, with our tensors under its names."""
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    return {
        "student": {("module." if ddp else "") + key: value for key, value in student.items()},
        "teacher": teacher,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": []},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", out_dim=10),
        "dino_loss": {"center": method.center},
    }


@pytest.mark.parametrize("ddp", [False, True])
def test_the_authors_training_checkpoint_comes_with_student_teacher_heads_and_centre(ddp, tmp_path):
    torch.manual_seed(0)
    method = DINO(TINY)
    random_(method.teacher, 1), random_(method.student, 2)
    method.center.normal_()
    with torch.no_grad():
        method.student.head.last_layer.weight_g.fill_(1), method.teacher.head.last_layer.weight_g.fill_(1)
    torch.save(authors_checkpoint(method, ddp=ddp), tmp_path / "checkpoint.pth")
    loaded = DINO.from_pretrained(tmp_path / "checkpoint.pth", config=TINY)
    own = method.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())
    assert not loaded.new_heads


def test_the_shapes_of_the_authors_checkpoint_tell_its_config(tmp_path):
    config = replace(TINY, dim=64, heads=1, norm_last_layer=True, head_bn=True, head_layers=4)
    torch.manual_seed(0)
    torch.save(authors_checkpoint(DINO(config), ddp=True), tmp_path / "checkpoint.pth")
    found = DINO.from_pretrained(tmp_path / "checkpoint.pth").config
    for name in (*VIT, *HEAD, "head_layers", "head_bn", "norm_last_layer"):
        assert getattr(found, name) == getattr(config, name), name
    assert found.pos_interp == "offset"


def test_the_last_layer_is_read_under_torchs_newer_weight_norm_too(tmp_path):
    torch.manual_seed(0)
    method = DINO(TINY)
    saved = authors_checkpoint(method, ddp=False)
    for name in ("student", "teacher"):
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            value = saved[name].pop(f"head.last_layer.{old}")
            saved[name][f"head.last_layer.parametrizations.weight.{new}"] = value
    torch.save(saved, tmp_path / "checkpoint.pth")
    loaded = DINO.from_pretrained(tmp_path / "checkpoint.pth", config=TINY)
    own = method.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())


@torch.no_grad()
def test_an_authors_backbone_gives_its_features_to_student_and_teacher(tmp_path):
    torch.manual_seed(0)
    backbone = random_(DINO(TINY).teacher.backbone)
    torch.save(backbone.state_dict(), tmp_path / "pretrain.pth")
    loaded = dino_of(tmp_path / "pretrain.pth", config=TINY)
    assert torch.equal(loaded.encode(images(16)), backbone(images(16)))
    assert torch.equal(loaded.student.backbone.pos_embed, backbone.pos_embed)
    assert loaded.new_heads, "training is to begin with the heads"


@torch.no_grad()
def test_dinov2s_authors_files_load_flat_chunked_and_inside_a_training_checkpoint(tmp_path):
    for registers, swiglu in ((0, False), (4, True)):
        sizes: Any = {"image_size": 28, "patch_size": 4, "dim": 64, "depth": 5, "heads": 1}
        interp = "antialias" if registers else "offset"
        config = DINOv2Config(**sizes, registers=registers, swiglu=swiglu, pos_interp=interp)
        method = random_(DINOv2(config))
        flat = {key.removeprefix("encoder."): value for key, value in method.state_dict().items()}
        chunked = {_chunk(key): value for key, value in flat.items()}
        whole = {
            "teacher": {**{f"backbone.{k}": v for k, v in chunked.items()}, "dino_head.mlp.0.weight": torch.ones(1)}
        }
        for saved in (flat, chunked, whole):
            torch.save(saved, tmp_path / "teacher.pth")
            loaded = DINOv2.from_pretrained(tmp_path / "teacher.pth")
            assert loaded.config == config
            assert torch.equal(loaded.encode(images(16)), method.encode(images(16)))


def _chunk(key: str) -> str:
    if not key.startswith("blocks."):
        return key
    number = int(key.split(".")[1])
    return f"blocks.{number // 2}.{key.removeprefix('blocks.')}"


@torch.no_grad()
def test_other_channels_and_sizes_adapt_student_and_teacher(tmp_path):
    torch.manual_seed(0)
    method = DINO(TINY)
    method.save_pretrained(tmp_path)
    other = DINO.from_pretrained(tmp_path, in_channels=1, image_size=24)
    for network, old in ((other.student, method.student), (other.teacher, method.teacher)):
        stem, before = network.backbone.patch_embed.proj.weight, old.backbone.patch_embed.proj.weight
        assert torch.allclose(stem, before.sum(1, keepdim=True), atol=1e-6)
        assert network.backbone.pos_embed.shape == (1, 37, 24)
    assert other.encode(images(24, c=1)).shape == (2, 24)
    v2 = DINOv2(DINOv2Config(image_size=28, patch_size=4, dim=24, depth=1, heads=3, registers=2))
    v2.save_pretrained(tmp_path / "v2")
    v2 = DINOv2.from_pretrained(tmp_path / "v2", in_channels=4, image_size=(16, 24))
    assert v2.patch_features(images(16, 24, c=4)).shape == (2, 4, 6, 24)


def test_a_resnet_folder_has_torchvisions_names_and_comes_back(tmp_path):
    import torchvision

    resnet: Any = {"backbone": "resnet18", "width": 8, "small_stem": True, "image_size": 16}
    config = DINOConfig(**resnet, **HEAD, **RUN, head_bn=True)
    torch.manual_seed(0)
    method = random_(DINO(config))
    state = load_file(method.save_pretrained(tmp_path) / "model.safetensors")
    names = {key for key in torchvision.models.resnet18().state_dict() if not key.startswith("fc.")}
    assert set(state) == names
    again = DINO.from_pretrained(tmp_path)
    assert torch.equal(again.encode(images(16)), method.encode(images(16)))
    with pytest.raises(ConfigError, match="small_stem"):
        layout_of(again).exports["transformers"](again.state_dict(), again.config)


@torch.no_grad()
def test_resnet50_loads_from_transformers_and_from_torchvisions_names(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    theirs = random_(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256])))
    theirs.save_pretrained(tmp_path)
    ours = dino_of(tmp_path)
    x = images(64)
    assert torch.allclose(ours.encode(x), theirs(x).pooler_output.flatten(1), rtol=1e-4, atol=1e-4)
    torch.save(ours.encoder.state_dict(), tmp_path / "dino_resnet50_pretrain.pth")
    again = dino_of(tmp_path / "dino_resnet50_pretrain.pth")
    assert torch.equal(again.encode(x), ours.encode(x))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DINO, {"model_type": "dinov2"}, "model_type is 'dinov2'"),
        (DINOv2, {"model_type": "vit"}, "model_type is 'vit': DINOv2 reads 'dinov2'"),
        (DINOv2, {"model_type": "dinov2", "hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        (DINOv2, {"model_type": "dinov2", "hidden_size": "wide"}, "dim = 'wide': expected int"),
    ],
)
def test_folders_of_other_architectures_are_refused_by_name(kind, values, message, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        kind.from_pretrained(tmp_path)


def test_what_is_missing_or_misshapen_is_listed(tmp_path):
    torch.manual_seed(0)
    DINO(TINY).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.output.dense.bias"]
    state["embeddings.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(
        WeightsMismatch, match=r"missing: teacher\.backbone\.blocks\.1\.mlp\.fc2\.bias\n  unused: embeddings\.extra"
    ):
        DINO.from_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        DINO.from_pretrained(tmp_path, strict=False)
    assert "embeddings.extra" in str(shown[-1].message)
