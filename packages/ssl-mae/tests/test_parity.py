"""The same numbers as transformers and timm, in both directions, on random weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
    pipeline,
)

from ssl_core.config import ConfigError
from ssl_core.hub.weights_file import load_weights
from ssl_core.patches import interpolate_positions, take_tokens
from ssl_core.pixels import normalize
from ssl_core.vit import ViT
from ssl_mae import MAE, MAEConfig
from ssl_mae.config import RECIPES
from ssl_mae.convert import to_timm
from ssl_train.cli.main import main
from ssl_train.data.views import eval_view

SIZES = [
    dict(
        image_size=32,
        patch_size=8,
        norm_pix_loss=False,
        layer_norm_eps=1e-12,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=128,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=96,
    ),
    dict(
        image_size=64,
        patch_size=16,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
        mask_ratio=0.6,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
    ),
    dict(
        image_size=48,
        patch_size=8,
        norm_pix_loss=True,
        layer_norm_eps=1e-12,
        mask_ratio=0.9,
        num_channels=1,
        hidden_size=40,
        num_hidden_layers=1,
        num_attention_heads=5,
        intermediate_size=60,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=1,
        decoder_intermediate_size=24,
    ),
]

PARAMETERS = pytest.mark.parametrize("sizes", SIZES, ids=["patch 8", "patch 16", "grey"])


def drawn(network: nn.Module, seed: int = 0) -> Any:
    """`network` in eval mode with every parameter drawn anew, fixed positions too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def ours(**fields: Any) -> MAE:
    small = dict(
        image_size=32,
        patch_size=8,
        dim=32,
        depth=2,
        heads=2,
        decoder_dim=24,
        decoder_depth=2,
        decoder_heads=3,
        mask_ratio=0.75,
    )
    return drawn(MAE(MAEConfig(**{**small, **fields})))


def images(c: int = 3, h: int = 32, w: int = 32) -> torch.Tensor:
    return torch.randn(2, c, h, w, generator=torch.Generator().manual_seed(1))


def noise(n: int) -> torch.Tensor:
    return torch.rand(2, n, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def difference(mae: MAE, theirs: ViTMAEForPreTraining) -> tuple[float, float]:
    """Largest difference of predictions and of losses for the same images and noise."""
    x, order = images(mae.config.in_channels, *mae.config.size), noise(mae.config.patches)
    expected, result = theirs(x, noise=order), mae.reconstruct(x, order)
    assert torch.equal(result.mask, expected.mask)
    return (result.pred - expected.logits).abs().max().item(), abs(result.loss - expected.loss).item()


@PARAMETERS
def test_what_transformers_saves_predicts_the_same_here(sizes, tmp_path):
    theirs = drawn(ViTMAEForPreTraining(ViTMAEConfig(**sizes)))
    theirs.save_pretrained(tmp_path)
    mae = MAE.from_pretrained(tmp_path)
    assert mae.config.layer_norm_eps == sizes["layer_norm_eps"]
    assert max(difference(mae, theirs)) < 1e-5


@PARAMETERS
def test_what_is_saved_here_predicts_the_same_in_transformers(sizes, tmp_path):
    drawn(ViTMAEForPreTraining(ViTMAEConfig(**sizes))).save_pretrained(tmp_path / "theirs")
    mae = MAE.from_pretrained(tmp_path / "theirs")
    folder = mae.save_pretrained(tmp_path / "ours")
    theirs, report = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert max(difference(mae, theirs.eval())) < 1e-5


def test_the_wrong_epsilon_would_be_seen():
    mae = ours(layer_norm_eps=1e-6)
    other = ours(layer_norm_eps=1e-3)
    order = noise(16)
    assert (mae.reconstruct(images(), order).pred - other.reconstruct(images(), order).pred).abs().max() > 1e-4


def test_weights_go_through_ours_and_come_back_with_the_same_bits(tmp_path):
    theirs = drawn(ViTMAEForPreTraining(ViTMAEConfig(**SIZES[0])))
    theirs.save_pretrained(tmp_path / "theirs")
    folder = MAE.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    back = ViTMAEForPreTraining.from_pretrained(folder).state_dict()
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_our_folder_saved_again_by_transformers_loads_here(tmp_path):
    mae = ours()
    theirs = ViTMAEForPreTraining.from_pretrained(mae.save_pretrained(tmp_path / "ours"))
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = MAE.from_pretrained(tmp_path / "theirs")
    assert loaded.config == mae.config
    assert max(difference(loaded, theirs.eval())) < 1e-5


@pytest.mark.parametrize("opener", [ViTMAEModel, AutoModel])
def test_the_encoder_opens_alone_and_leaves_the_decoder(opener, tmp_path):
    mae = ours()
    folder = mae.save_pretrained(tmp_path)
    theirs, report = opener.from_pretrained(folder, output_loading_info=True)
    assert isinstance(theirs, ViTMAEModel)
    unexpected = report.pop("unexpected_keys")
    assert all(key.startswith("decoder.") for key in unexpected)
    assert not any(report.values()), report
    assert theirs.num_parameters() == sum(p.numel() for p in mae.encoder.parameters())
    order = noise(16)
    with torch.no_grad():
        keep = order.argsort(1)[:, :4]
        expected = theirs.eval()(images(), noise=order).last_hidden_state
        assert torch.allclose(mae.encoder(images(), keep), expected, atol=1e-5)


def test_the_pipeline_of_transformers_runs_on_our_folder(tmp_path):
    ours().save_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    features = extract(Image.new("RGB", (70, 50), "red"), return_tensors=True)
    assert features.shape == (1, 1 + 4, 32), "CLS and the quarter of the patches that ViTMAEModel sees"


@pytest.mark.parametrize(
    "statistics",
    [{"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}, {"in_channels": 1, "mean": (0.4,), "std": (0.2,)}],
)
def test_the_image_processor_of_transformers_makes_our_view(statistics, tmp_path):
    mae = ours(**statistics)
    processor = AutoImageProcessor.from_pretrained(mae.save_pretrained(tmp_path))
    pixels = torch.randint(0, 256, (mae.config.in_channels, 36, 36), dtype=torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    view = eval_view(mae.config)({"image": pixels})["views"][0]
    assert view.shape[1:] == (32, 32), "cropped after a resize from 36 to 36"
    assert torch.allclose(normalize(view[None], mae.config.mean, mae.config.std), theirs, atol=1e-5)
    assert mae.encode(view[None]).shape == (1, 32)


def test_positions_of_another_size_equal_transformers():
    theirs = drawn(ViTMAEModel(ViTMAEConfig(**{**SIZES[0], "mask_ratio": 0.0})))
    positions = theirs.embeddings.position_embeddings
    expected = theirs.embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 6 * 6, 32), 48, 48)
    assert torch.allclose(interpolate_positions(positions, (4, 4), (6, 6), "size"), expected, atol=1e-6)


def test_positions_of_another_size_equal_timm():
    from timm.layers import resample_abs_pos_embed

    positions = torch.randn(1, 1 + 7 * 7, 16, generator=torch.Generator().manual_seed(0))
    for new in ((5, 5), (9, 3)):
        expected = resample_abs_pos_embed(positions, new_size=list(new), old_size=[7, 7], num_prefix_tokens=1)
        assert torch.allclose(interpolate_positions(positions, (7, 7), new, "antialias"), expected, atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_tokens_equal_timms_vit_with_the_same_weights(positions):
    theirs = drawn(
        timm.create_model(
            "vit_tiny_patch16_224",
            pretrained=False,
            img_size=(32, 64),
            patch_size=8,
            embed_dim=48,
            depth=2,
            num_heads=3,
            mlp_ratio=2.5,
            num_classes=0,
            global_pool="",
        )
    )
    network = ViT(
        image_size=(32, 64), patch_size=8, dim=48, depth=2, heads=3, mlp_ratio=2.5, positions=positions
    ).eval()
    network.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.allclose(network(images(h=32, w=64)), theirs(images(h=32, w=64)), atol=1e-5)


def test_a_timm_folder_loads(tmp_path):
    theirs = drawn(
        timm.create_model(
            "vit_base_patch16_224",
            pretrained=False,
            img_size=32,
            patch_size=8,
            embed_dim=64,
            depth=2,
            num_heads=1,
            num_classes=0,
        )
    )
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True)
    with pytest.warns(UserWarning, match="without decoder: these are initialised anew"):
        mae = MAE.from_pretrained(tmp_path)
    assert mae.config.mean == theirs.pretrained_cfg["mean"]
    with torch.no_grad():
        assert torch.allclose(mae.encode(images()), theirs(images()), atol=1e-5)


def test_initial_encoder_sees_the_same_with_the_patches_dropped_after_the_projection():
    """The authors drop patches after projecting all of them; we drop them before."""
    mae, order = ours(), noise(16)
    keep = order.argsort(1)[:, :4]
    encoder = mae.encoder
    every = encoder.patch_embed.proj(images()).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    x = torch.cat([(encoder.cls_token + encoder.pos_embed[:, :1]).expand(2, -1, -1), take_tokens(every, keep)], 1)
    for block in encoder.blocks:
        x = block(x)
    assert torch.allclose(encoder(images(), keep), encoder.norm(x), atol=1e-5)


def export(mae: MAE, to: str, folder: Path) -> Path:
    weights, out = mae.save_pretrained(folder / "run"), folder / to
    assert main(RECIPES, ["export", str(weights), str(out), "--to", to]) == 0
    return out


@pytest.mark.parametrize(
    "fields", [{}, {"layer_norm_eps": 1e-12}, {"image_size": (32, 64)}, {"dim": 44, "mlp_ratio": 60 / 44}]
)
def test_export_to_transformers_opens_as_a_vit_that_sees_every_patch(fields, tmp_path):
    mae = ours(**fields)
    folder = export(mae, "transformers", tmp_path)
    theirs, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(theirs, ViTModel)
    assert {key.partition(".")[0] for key in report.pop("missing_keys")} <= {"pooler"}
    assert not any(report.values()), report
    x = images(3, *mae.config.size)
    with torch.no_grad():
        assert torch.allclose(mae.encoder(x), theirs.eval()(x).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "mean"},
        {"image_size": (32, 64)},
        {"in_channels": 1, "mean": (0.4,), "std": (0.2,), "mlp_ratio": 2.0, "patch_size": 4},
    ],
)
def test_export_to_timm_gives_the_features_of_encode(fields, tmp_path):
    mae = ours(**fields)
    folder = export(mae, "timm", tmp_path)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(mae.config.in_channels, *mae.config.size)
    with torch.no_grad():
        assert torch.allclose(mae.encode(x), theirs(x), atol=1e-5)
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["input_size"]) == (mae.config.in_channels, *mae.config.size)
    assert (tuple(data["mean"]), tuple(data["std"])) == (mae.config.mean, mae.config.std)
    assert (data["crop_pct"], data["interpolation"]) == (mae.config.crop_pct, "bicubic")


def test_export_to_timm_refuses_an_epsilon_that_timm_has_not(tmp_path, capsys):
    mae = ours(layer_norm_eps=1e-12)
    with pytest.raises(ConfigError, match="layer_norm_eps = 1e-12: timm has 1e-6"):
        to_timm(mae.state_dict(), mae.config)
    weights = mae.save_pretrained(tmp_path / "run")
    assert main(RECIPES, ["export", str(weights), str(tmp_path / "out"), "--to", "timm"]) == 2
    assert "timm has 1e-6" in capsys.readouterr().err


def test_an_export_never_writes_over_a_run_or_published_weights(tmp_path, capsys):
    weights = ours().save_pretrained(tmp_path / "run")
    before = (weights / "config.json").read_bytes()
    assert main(RECIPES, ["export", str(weights), str(weights), "--to", "timm"]) == 2
    assert "published weights, which the export would overwrite" in capsys.readouterr().err
    assert (weights / "config.json").read_bytes() == before


def test_exported_encoders_hold_no_decoder(tmp_path):
    mae = ours()
    expected = sum(p.numel() for p in mae.encoder.parameters())
    for to in ("transformers", "timm"):
        folder = export(mae, to, tmp_path)
        state = load_weights(folder / "model.safetensors")
        assert sum(tensor.numel() for tensor in state.values()) == expected
        assert not [key for key in json.loads((folder / "config.json").read_text()) if key.startswith("decoder")]


def test_the_config_of_a_run_is_what_transformers_reads(tmp_path):
    mae = ours(mask_ratio=0.6, norm_pix_loss=False)
    config = ViTMAEConfig.from_pretrained(mae.save_pretrained(tmp_path))
    assert (config.mask_ratio, config.norm_pix_loss, config.layer_norm_eps) == (0.6, False, 1e-6)
    assert (config.hidden_size, config.decoder_hidden_size, config.intermediate_size) == (32, 24, 128)
    assert dataclasses.asdict(mae.config)["mask_ratio"] == 0.6
