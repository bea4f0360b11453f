"""Weights in every spelling that exists, adapted on load, and every kind of bad checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_core.hub.layout import WeightsMismatch
from ssl_core.hub.transfer import HubError
from ssl_core.hub.weights_file import WeightsError, load_weights, save_weights
from ssl_core.patches import interpolate_positions
from ssl_mae import MAE, MAEConfig
from ssl_mae.config import RECIPES
from ssl_mae.convert import LAYOUTS
from ssl_train.cli.main import defaults, main

pytest_plugins = ["ssl_testing.fixtures"]

# Heads of 64 and 32, so that a checkpoint without a config can be read by its shapes.
SMALL = MAEConfig(
    image_size=16,
    patch_size=4,
    dim=64,
    depth=2,
    heads=1,
    decoder_dim=32,
    decoder_depth=2,
    decoder_heads=1,
    mask_ratio=0.5,
)


def method(**fields: Any) -> MAE:
    torch.manual_seed(0)
    network = MAE(dataclasses.replace(SMALL, **fields))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return method().save_pretrained(tmp_path / "saved")


def images(c: int = 3, h: int = 16, w: int = 16) -> Tensor:
    return torch.randint(0, 256, (2, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def equal(a: MAE, b: MAE) -> bool:
    return same(a.state_dict(), b.state_dict())


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def write(folder: Path, values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def theirs(folder: Path) -> dict[str, Any]:
    """The folder as transformers would have written it: without our section, without sums."""
    values = read(folder)
    del values["ssl_core"]
    write(folder, values)
    (folder / "SHA256SUMS").unlink()
    return values


def rename(folder: Path, to: Callable[[str], str | None]) -> dict[str, Tensor]:
    """Rewrite model.safetensors under other names; None drops a tensor."""
    old = load_weights(folder / "model.safetensors")
    state = {new: tensor for name, tensor in old.items() if (new := to(name)) is not None}
    save_weights(folder / "model.safetensors", state)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    return state


IN_MEMORY = [  # transformers 4 on disk -> transformers 5 in memory, within a layer
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    (".output.dense", ".mlp.fc2"),
]


def in_memory(name: str) -> str:
    for old, new in IN_MEMORY:
        name = name.replace(old, new)
    return name.replace("vit.encoder.layer.", "vit.layers.")


def decoder_encoder(name: str) -> str:
    return name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")


def authors() -> dict[str, Tensor]:
    """The state of `method()` under the names of the authors' code, most of which are ours."""
    names = {
        "decoder.pos_embed": "decoder_pos_embed",
        "decoder.mask_token": "mask_token",
        "decoder.embed": "decoder_embed",
        "decoder.norm": "decoder_norm",
        "decoder.pred": "decoder_pred",
        "decoder.blocks": "decoder_blocks",
        "encoder.": "",
    }
    state = {}
    for name, tensor in method().state_dict().items():
        old, new = next((old, new) for old, new in names.items() if name.startswith(old))
        state[new + name[len(old) :]] = tensor
    return state


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_size": (8, 24), "pool": "mean", "norm_pix_loss": False},
        {"in_channels": 1, "mean": (0.3,), "std": (0.2,)},
        {"in_channels": 4, "mean": (0.3, 0.4, 0.5, 0.6), "std": (0.2,) * 4, "patch_size": 8},
        {"dim": 44, "heads": 2, "mlp_ratio": 60 / 44, "decoder_dim": 44, "layer_norm_eps": 1e-12},
    ],
)
def test_what_is_saved_loads_again_with_its_whole_config(fields, tmp_path):
    network = method(**fields)
    loaded = MAE.from_pretrained(network.save_pretrained(tmp_path))
    assert equal(loaded, network)
    assert loaded.config == network.config
    assert not loaded.training
    x = images(network.config.in_channels, *network.config.size)
    assert torch.equal(loaded.encode(x), network.encode(x))
    assert not [name for name in ("heads.safetensors", "pytorch_model.bin") if (tmp_path / name).exists()]


def test_what_transformers_saved_goes_through_ours_bit_for_bit(saved, tmp_path):
    theirs(saved)
    before = load_weights(saved / "model.safetensors")
    folder = MAE.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert same(load_weights(folder / "model.safetensors"), before)
    assert len(before) == 6 + 8 + 4 * 16  # around the blocks of encoder and decoder, and in their four blocks
    assert {key: value for key, value in read(folder).items() if key != "ssl_core"} == read(saved)


@pytest.mark.parametrize("spelling", [in_memory, decoder_encoder])
def test_other_spellings_of_transformers_load(spelling, saved):
    theirs(saved)
    before = set(load_weights(saved / "model.safetensors"))
    assert set(rename(saved, spelling)) != before
    assert equal(MAE.from_pretrained(saved), method())


@pytest.mark.parametrize("spelling", [lambda name: name, in_memory])
def test_an_encoder_without_prefix_loads_and_its_decoder_is_reported(spelling, saved):
    theirs(saved)
    rename(saved, lambda name: spelling(name).removeprefix("vit.") if name.startswith("vit.") else None)
    with pytest.warns(UserWarning, match="holds an encoder without decoder: these are initialised anew"):
        loaded = MAE.from_pretrained(saved)
    assert torch.equal(loaded.encode(images()), method().encode(images()))


def test_the_authors_checkpoint_loads_with_the_arguments_that_they_saved(tmp_path):
    arguments = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=True, batch_size=64)
    torch.save({"model": authors(), "args": arguments, "epoch": 799, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    loaded = MAE.from_pretrained(tmp_path / "a.pth")
    assert equal(loaded, method())
    assert loaded.config == MAEConfig(
        image_size=16, patch_size=4, dim=64, depth=2, heads=1, decoder_dim=32, decoder_depth=2, decoder_heads=1
    )
    torch.save(authors(), tmp_path / "flat.pth")
    assert equal(MAE.from_pretrained(tmp_path / "flat.pth"), method())


def test_the_authors_encoder_for_fine_tuning_has_no_decoder(tmp_path):
    encoder = {name: tensor for name, tensor in authors().items() if not name.startswith(("decoder", "mask"))}
    torch.save({"model": encoder}, tmp_path / "encoder.pth")
    with pytest.warns(UserWarning, match="without decoder: these are initialised anew"):
        loaded = MAE.from_pretrained(tmp_path / "encoder.pth")
    assert torch.equal(loaded.encode(images()), method().encode(images()))


@pytest.mark.parametrize(
    "wrap", ["", "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "model.module.encoder."]
)
def test_a_run_starts_from_an_encoder_alone_and_keeps_the_presets_decoder(tmp_path, wrap):
    encoder = {wrap + name: t for name, t in authors().items() if not name.startswith(("decoder", "mask"))}
    torch.save({"state_dict": encoder}, tmp_path / "encoder.pth")
    recipe = RECIPES["mae"]
    line = ["--preset", "demo", "--data", "photos/", "--init", str(tmp_path / "encoder.pth")]
    settings = defaults(recipe, line).config
    demo = recipe.preset("demo")
    assert (settings.dim, settings.depth, settings.image_size) == (64, 2, 16)
    assert (settings.decoder_dim, settings.decoder_depth) == (demo.decoder_dim, demo.decoder_depth)
    with pytest.warns(UserWarning, match="without decoder: these are initialised anew"):
        loaded = MAE.from_pretrained(tmp_path / "encoder.pth", config=settings)
    assert all(torch.equal(loaded.state_dict()[k], t) for k, t in method().state_dict().items() if k[:3] == "enc")


def test_a_vit_of_transformers_is_an_encoder_alone(tmp_path):
    tensors, config = LAYOUTS["mae"].exports["transformers"](method().state_dict(), method().config)
    save_weights(tmp_path / "model.safetensors", {**tensors, "pooler.dense.bias": torch.zeros(64)})
    write(tmp_path, config)
    with pytest.warns(UserWarning, match="without decoder: these are initialised anew"):
        loaded = MAE.from_pretrained(tmp_path)
    assert loaded.config.mlp_ratio == method().config.mlp_ratio
    assert torch.equal(loaded.encode(images()), method().encode(images()))


def test_timms_folder_brings_its_pixel_statistics(tmp_path):
    encoder = {name: tensor for name, tensor in authors().items() if not name.startswith(("decoder", "mask"))}
    save_weights(tmp_path / "model.safetensors", encoder)
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4], "input_size": [3, 16, 16], "crop_pct": 0.9}
    write(tmp_path, {"architecture": "vit_base_patch16_224", "num_classes": 0, "pretrained_cfg": pixels})
    with pytest.warns(UserWarning, match="without decoder: these are initialised anew"):
        loaded = MAE.from_pretrained(tmp_path)
    assert (loaded.config.mean, loaded.config.std, loaded.config.crop_pct) == ((0.5,) * 3, (0.4,) * 3, 0.9)
    expected = method(mean=(0.5,) * 3, std=(0.4,) * 3)
    assert torch.equal(loaded.encode(images()), expected.encode(images()))


def test_what_transformers_leaves_out_or_adds_when_it_saves_ours_again_changes_nothing(saved):
    values = read(saved)
    del values["hidden_act"], values["qkv_bias"], values["dtype"]
    write(saved, {**values, "transformers_version": "5.23.0", "initializer_range": 0.02, "hidden_dropout_prob": 0.0})
    assert MAE.from_pretrained(saved).config == SMALL


def test_defaults_that_transformers_leaves_out_are_its_own(saved):
    values = theirs(saved)
    for key in ("layer_norm_eps", "norm_pix_loss", "mask_ratio", "num_channels"):
        del values[key]
    write(saved, values)
    config = MAE.from_pretrained(saved).config
    assert (config.layer_norm_eps, config.norm_pix_loss, config.mask_ratio) == (1e-12, False, 0.75)


def test_pixel_statistics_come_from_the_preprocessor(saved):
    theirs(saved)
    (saved / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    assert MAE.from_pretrained(saved).config.mean == (0.5,) * 3
    (saved / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5}))
    with pytest.raises(ConfigError, match=r"mean = 0\.5"):
        MAE.from_pretrained(saved)
    (saved / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json is not readable JSON"):
        MAE.from_pretrained(saved)


def test_one_channel_equals_the_rgb_network_on_the_repeated_channel(saved):
    grey = MAE.from_pretrained(saved, in_channels=1)
    x = torch.randn(2, 1, 16, 16)
    assert grey.config.in_channels == len(grey.config.mean) == 1
    assert torch.allclose(grey.encode(x), method().encode(x.expand(-1, 3, -1, -1)), atol=1e-5)
    noise = torch.rand(2, 16)
    colour = method(norm_pix_loss=False).reconstruct(x.expand(-1, 3, -1, -1), noise)
    pred = grey.reconstruct(x, noise).pred
    assert torch.allclose(pred, colour.pred.view(2, 16, 16, 3).mean(-1), atol=1e-5)


def test_more_channels_than_the_weights_have(saved):
    wide = MAE.from_pretrained(saved, in_channels=5)
    assert wide.reconstruct(images(5)).pred.shape == (2, 16, 16 * 5)
    again = MAE.from_pretrained(saved, in_channels=3)
    assert equal(again, method())


@pytest.mark.parametrize("size", [24, (8, 24)])
def test_another_image_size_resamples_both_positions(size, saved):
    loaded = MAE.from_pretrained(saved, image_size=size)
    h, w = loaded.config.size
    x, noise = images(h=h, w=w), torch.rand(2, h * w // 16)
    assert loaded.decoder.pos_embed.shape == (1, 1 + h * w // 16, 32)
    expected = interpolate_positions(method().encoder.pos_embed, (4, 4), (h // 4, w // 4), "size")
    assert torch.equal(loaded.encoder.pos_embed, expected)
    assert torch.allclose(loaded.reconstruct(x, noise).pred, method().reconstruct(x, noise).pred, atol=1e-5)


def test_a_run_may_start_from_weights_of_another_size_with_its_own_recipe(saved):
    wanted = dataclasses.replace(
        SMALL, image_size=32, in_channels=1, mean=(0.5,), std=(0.2,), epochs=3, warmup_epochs=1
    )
    loaded = MAE.from_pretrained(saved, config=wanted)
    assert loaded.config == wanted
    assert loaded.encode(images(1, 32, 32)).shape == (2, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_encode_bytes_and_floats(dtype, saved):
    loaded = MAE.from_pretrained(saved, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    features = loaded.encode(images())
    assert features.dtype == dtype
    assert torch.allclose(features.float(), method().encode(images()), atol=0.2)
    assert torch.isfinite(loaded.reconstruct(images()).loss)


def test_the_device_is_the_one_asked_for(saved):
    assert {p.device.type for p in MAE.from_pretrained(saved, device="meta").parameters()} == {"meta"}


def test_missing_unused_and_misshapen_tensors_are_listed_together(saved):
    theirs(saved)
    state = load_weights(saved / "model.safetensors")
    del state["vit.layernorm.weight"], state["vit.encoder.layer.1.attention.attention.key.bias"]
    state["vit.pooler.weight"] = torch.zeros(2)
    state["decoder.decoder_norm.bias"] = torch.zeros(31)
    save_weights(saved / "model.safetensors", state)
    with pytest.raises(WeightsMismatch) as refused:
        MAE.from_pretrained(saved)
    for line in (
        "missing: encoder.norm.weight",
        "missing: encoder.blocks.1.attn.qkv.bias",
        "unused: vit.encoder.layer.1.attention.attention.query.bias",
        "unused: vit.pooler.weight",
        "shape: decoder.norm.bias: (31,) in the file, (32,) in the network",
    ):
        assert line in str(refused.value)


def test_parts_that_cannot_be_one_tensor_are_named(saved):
    theirs(saved)
    state = load_weights(saved / "model.safetensors")
    state["vit.encoder.layer.0.attention.attention.key.weight"] = torch.zeros(64, 63)
    save_weights(saved / "model.safetensors", state)
    with pytest.raises(InputError, match=r"attention\.key\.weight \(64, 63\)"):
        MAE.from_pretrained(saved)


def test_weights_of_another_decoder_depth_are_refused_either_way(saved):
    values = theirs(saved)
    write(saved, {**values, "decoder_num_hidden_layers": 3})
    with pytest.raises(WeightsMismatch, match=r"missing: decoder\.blocks\.2\.attn\.proj\.bias"):
        MAE.from_pretrained(saved)
    write(saved, {**values, "decoder_num_hidden_layers": 1})
    with pytest.raises(WeightsMismatch, match=r"unused: decoder\.blocks\.1\.attn\.proj\.bias"):
        MAE.from_pretrained(saved)


def test_a_file_cut_short_is_refused(saved):
    file = saved / "model.safetensors"
    content = file.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            MAE.from_pretrained(saved)
    theirs(saved)
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated"):
        MAE.from_pretrained(saved)


class Payload:
    """A pickle that would leave a trace if anything in it were executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_pickle_is_named_and_not_executed(as_zip, tmp_path):
    trace = tmp_path / "executed"
    content = {"model": authors(), "args": Payload(trace)}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(WeightsError, match=r"nothing of it was executed: .*mkdir"):
        MAE.from_pretrained(tmp_path / "bad.pth")
    assert not trace.exists()
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(WeightsError):
        MAE.from_pretrained(tmp_path / "bare.pth")
    assert not trace.exists()


def test_a_pickle_that_calls_itself_safetensors_is_refused(saved):
    torch.save(authors(), saved / "model.safetensors")
    (saved / "SHA256SUMS").unlink()
    with pytest.raises(WeightsError, match=r"is a zip or a pickle, as torch\.save writes, not safetensors"):
        MAE.from_pretrained(saved)


def test_a_folder_of_another_architecture_is_named(tmp_path):
    save_weights(
        tmp_path / "model.safetensors",
        {
            "embeddings.word_embeddings.weight": torch.zeros(9, 4),
            "encoder.layer.0.attention.self.query.weight": torch.zeros(4, 4),
            "encoder.layer.0.output.dense.bias": torch.zeros(4),
        },
    )
    write(tmp_path, {"model_type": "bert", "hidden_size": 4, "architectures": ["BertModel"]})
    with pytest.raises(ConfigError, match=r"config\.json: model_type is 'bert': MAE reads 'vit_mae'"):
        MAE.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"the checkpoint is not a MAE: it holds no encoder\.patch_embed\.proj\.weight"
    ):
        MAE.from_pretrained(tmp_path)


def test_a_folder_without_weights_lists_what_it_holds(saved):
    (saved / "model.safetensors").unlink()
    (saved / "model.onnx").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors; it holds .*model\.onnx"):
        MAE.from_pretrained(saved)
    with pytest.raises(FileNotFoundError):
        MAE.from_pretrained(saved / "nothing" / "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"qkv_bias": False}, "qkv_bias = False is not supported"),
        ({"intermediate_size": 128}, "have different ratios"),
        ({"intermediate_size": "256"}, "intermediate_size = '256': expected a positive number"),
        ({"intermediate_size": 0}, "intermediate_size = 0: expected a positive number"),
        ({"num_channels": 10**9}, "num_channels = 1000000000: expected a positive number"),
        ({"num_channels": 4}, r"mean = \(0.485, 0.456, 0.406\): needs one value per channel, 4 in all"),
        ({"patch_size": 8}, r"shape: encoder.patch_embed.proj.weight: \(64, 3, 4, 4\) in the file, \(64, 3, 8, 8\)"),
        ({"hidden_size": 1 << 40, "intermediate_size": 1 << 19}, "ratios|positive|at most"),
        ({"patch_size": [4, 4]}, r"patch_size = \[4, 4\]: expected int"),
        ({"image_size": None}, "image_size = None"),
        ({"image_size": 32}, r"shape: encoder.pos_embed: \(1, 17, 64\) in the file, \(1, 65, 64\)"),
        ({"num_attention_heads": 3}, "heads = 3: must divide the width 64"),
        ({"mask_ratio": 1.5}, "mask_ratio = 1.5"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps = '1e-6': expected float"),
        ({"model_type": None}, "model_type is None"),
    ],
)
def test_a_config_of_transformers_that_cannot_be_used_is_named(changes, message, saved):
    write(saved, {**theirs(saved), **changes})
    with pytest.raises((ConfigError, WeightsMismatch), match=message):
        MAE.from_pretrained(saved)


def mutate(value: Any, dice: random.Random) -> Any:
    """A value of JSON with one thing changed, somewhere in it."""
    if isinstance(value, dict) and value:
        key = dice.choice(sorted(value))
        kind = dice.choice(["change", "change", "change", "drop", "rename"])
        rest = {k: v for k, v in value.items() if k != key}
        if kind == "drop":
            return rest
        return {**rest, key + "_": value[key]} if kind == "rename" else {**rest, key: mutate(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.5:
        index = dice.randrange(len(value))
        return [*value[:index], mutate(value[index], dice), *value[index + 1 :]]
    strange = [None, True, -1, 0, 1, 7, 2.5, 1e308, 10**9, 2**62, 10**400, "", "x", [], [1], [[]], {}, {"a": 1}]
    if type(value) in (int, float) and dice.random() < 0.5:
        return dice.choice([value + 1, -value, value * 2, value * 10**6, str(value), [value, value]])
    return dice.choice(strange)


@pytest.mark.parametrize(("ours", "times"), [(True, 200), (False, 200)])
def test_no_mutation_of_a_config_ends_in_anything_but_a_clear_error(ours, times, saved):
    original, expected = read(saved) if ours else theirs(saved), method()
    preprocessor = json.loads((saved / "preprocessor_config.json").read_text())
    (saved / "SHA256SUMS").unlink(missing_ok=True)  # which would refuse every one of them
    dice, outcomes = random.Random(20), {"loaded": 0, "refused": 0}
    for _ in range(times):
        write(saved, mutate(original, dice))
        mutated = preprocessor if ours or dice.random() < 0.7 else mutate(preprocessor, dice)
        (saved / "preprocessor_config.json").write_text(json.dumps(mutated))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                loaded = MAE.from_pretrained(saved)
            except (InputError, FileNotFoundError) as error:
                assert str(error)
                outcomes["refused"] += 1
            else:
                assert equal(loaded, expected)
                outcomes["loaded"] += 1
    assert min(outcomes.values()) > 20, outcomes


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("pos_embed", torch.zeros(1, 16, 64)),
        ("pos_embed", torch.zeros(17, 64)),
        ("pos_embed", torch.zeros(1, 1, 64)),
        ("patch_embed.proj.weight", torch.zeros(64, 48)),
        ("patch_embed.proj.weight", torch.zeros(63, 3, 4, 4)),
        ("blocks.0.mlp.fc1.weight", torch.zeros(64)),
        ("blocks.9999999.mlp.fc1.weight", torch.zeros(256, 64)),
        ("decoder_embed.weight", torch.zeros(())),
        ("decoder_embed.weight", torch.zeros(7, 64)),
        ("decoder_pred.weight", torch.zeros(48, 33)),
    ],
)
def test_shapes_that_make_no_network_are_refused(name, tensor, tmp_path):
    torch.save(authors() | {name: tensor}, tmp_path / "odd.pth")
    with pytest.raises((ConfigError, WeightsMismatch)):
        MAE.from_pretrained(tmp_path / "odd.pth")
    with pytest.raises((ConfigError, WeightsMismatch)):
        MAE.from_pretrained(tmp_path / "odd.pth", in_channels=1, image_size=32, strict=False)


def test_a_run_that_starts_from_weights_takes_their_sizes_and_the_presets_recipe(tmp_path):
    stored = MAEConfig(
        image_size=16,
        patch_size=4,
        dim=24,
        depth=1,
        heads=2,
        decoder_dim=12,
        decoder_depth=1,
        decoder_heads=2,
        mask_ratio=0.5,
        norm_pix_loss=False,
        crop_scale=(0.3, 0.9),
    )
    folder = MAE(stored).save_pretrained(tmp_path)
    settings, demo = (
        defaults(RECIPES["mae"], ["--preset", "demo", "--init", str(folder)]).config,
        RECIPES["mae"].preset("demo"),
    )
    for name in ("image_size", "patch_size", "dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads"):
        assert getattr(settings, name) == getattr(stored, name), name
    for name in ("mask_ratio", "norm_pix_loss", "crop_scale", "crop_pct", "base_lr", "epochs"):
        assert getattr(settings, name) == getattr(demo, name), name


# The Hub, a server on 127.0.0.1

IMAGES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def published() -> MAE:
    torch.manual_seed(0)
    return MAE(
        MAEConfig(
            image_size=16,
            patch_size=4,
            dim=16,
            depth=2,
            heads=2,
            decoder_dim=8,
            decoder_depth=1,
            decoder_heads=2,
            epochs=1,
            warmup_epochs=0,
            batch_size=4,
        )
    ).eval()


def test_a_pushed_model_comes_back_bit_for_bit(hub, published):
    name = f"{hub.user}/my-mae"
    url = published.push_to_hub(name, token=hub.token, license="cc-by-nc-4.0")
    assert f"/{name}/commit/" in url
    same = MAE.from_pretrained(name)
    assert same.config == published.config
    assert torch.equal(same.encode(IMAGES), published.encode(IMAGES))
    repo = hub.repos[name]
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert "license: cc-by-nc-4.0" in card
    assert f'from_pretrained("{name}")' in card


def test_a_revision_pins_the_weights(hub, published):
    name = f"{hub.user}/my-mae"
    published.push_to_hub(name, token=hub.token)
    first = published.encode(IMAGES).clone()
    commit = hub.repos[name].refs["main"]
    with torch.no_grad():
        published.encoder.cls_token.add_(1)
        published.encoder.norm.bias.add_(1)
    published.push_to_hub(name, token=hub.token)
    assert torch.equal(MAE.from_pretrained(name, revision=commit).encode(IMAGES), first)
    assert not torch.equal(MAE.from_pretrained(name).encode(IMAGES), first)


def test_the_command_pushes_a_run_and_reads_it_back(hub, published, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    run, name = str(published.save_pretrained(tmp_path / "run")), f"{hub.user}/from-a-run"
    assert main(RECIPES, ["push", run, name]) == 0
    assert f"/{name}/commit/" in capsys.readouterr().out
    assert main(RECIPES, ["info", name]) == 0
    assert main(RECIPES, ["push", run, name, "--dry-run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out


def test_a_repository_that_does_not_exist_is_one_line_and_exit_code_2(hub, capsys):
    with pytest.raises(HubError):
        MAE.from_pretrained("nobody/nothing")
    assert main(RECIPES, ["embed", "nobody/nothing"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ssl-mae: ") and "nobody/nothing" in message and "Traceback" not in message


@pytest.mark.network
def test_the_published_checkpoint_reconstructs_like_transformers(tmp_path):
    """The real `facebook/vit-mae-base` predicts as transformers does on the same noise."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ViTMAEForPreTraining.from_pretrained("facebook/vit-mae-base").eval()
    ours = MAE.from_pretrained("facebook/vit-mae-base", cache_dir=tmp_path)
    images, noise = torch.randn(2, 3, 224, 224), torch.rand(2, 196)
    with torch.no_grad():
        expected = theirs(pixel_values=images, noise=noise)
    result = ours.reconstruct(images, noise=noise)
    torch.testing.assert_close(result.pred, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.loss, expected.loss, atol=1e-5, rtol=1e-5)
