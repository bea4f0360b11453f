"""Names of weights, translated in both directions without touching a bit."""

from __future__ import annotations

import pytest
import torch

from ssl_core.errors import InputError
from ssl_core.hub.encoders import BLOCK, BLOCK_IN_MEMORY, EMBEDDINGS, VIT, VIT_IN_MEMORY, VIT_TIMM
from ssl_core.hub.keymap import KeyMap, prefixed
from ssl_core.hub.weights_file import load_weights, save_weights
from ssl_core.vit import ViT

TOY = KeyMap(
    rows=(
        ("stem.{w}", "conv.{w}"),
        ("blocks.{i}.qkv.{w}", ("layer.{i}.query.{w}", "layer.{i}.key.{w}", "layer.{i}.value.{w}")),
        ("blocks.{i}.out.{w}", "layer.{i}.output.dense.{w}"),
        ("blocks.{i}.attn_out.{w}", "layer.{i}.attention.output.dense.{w}"),
    ),
    also=(("stem.{w}", "old.conv.{w}"),),
    drop=(r"pooler\..*", r".*\.index"),
)


def tensors(*names: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(6, 2, generator=generator) for name in names}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def vit_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    network = ViT(image_size=8, patch_size=4, dim=8, depth=12, heads=2)
    return {name: torch.randn(p.shape, generator=generator) for name, p in network.state_dict().items()}


def test_a_fused_tensor_is_query_then_key_then_value():
    theirs = tensors("layer.0.query.weight", "layer.0.key.weight", "layer.0.value.weight")
    expected = torch.cat(list(theirs.values()))
    for order in (list(theirs), list(theirs)[::-1]):
        ours, unknown = TOY.to_ours({name: theirs[name] for name in order})
        assert unknown == []
        assert same(ours, {"blocks.0.qkv.weight": expected}), "whatever the order of the file"
    back, rest = TOY.to_theirs(ours)
    assert same(back, theirs)
    assert rest == {}


def test_the_parts_of_a_fused_tensor_can_be_written_as_safetensors(tmp_path):
    parts, _ = TOY.to_theirs({"blocks.0.qkv.weight": torch.randn(6, 2)})
    save_weights(tmp_path / "model.safetensors", parts)
    assert same(load_weights(tmp_path / "model.safetensors"), parts)


@pytest.mark.parametrize("rows", [VIT, (*EMBEDDINGS, *VIT_IN_MEMORY), VIT_TIMM])
def test_every_spelling_of_a_vit_comes_back_bit_for_bit(rows):
    keymap, state = KeyMap(rows=rows), vit_state()
    theirs, rest = keymap.to_theirs(state)
    assert rest == {}
    ours, unknown = keymap.to_ours(theirs)
    assert unknown == []
    assert same(ours, state)


def test_the_vit_table_writes_the_names_that_transformers_keeps_on_disk():
    theirs, _ = KeyMap(rows=VIT).to_theirs(vit_state())
    assert {name for name in theirs if not name.startswith("encoder.layer.")} == {
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.bias",
        "layernorm.weight",
        "layernorm.bias",
    }
    of_one = {name.removeprefix("encoder.layer.11.") for name in theirs if name.startswith("encoder.layer.11.")}
    assert of_one == {
        f"{name}.{w}"
        for w in ("weight", "bias")
        for name in (
            "layernorm_before", "layernorm_after", "attention.attention.query", "attention.attention.key",
            "attention.attention.value", "attention.output.dense", "intermediate.dense", "output.dense",
        )
    }  # fmt: skip
    key = theirs["encoder.layer.11.attention.attention.key.bias"]
    assert torch.equal(key, vit_state()["blocks.11.attn.qkv.bias"][8:16])


def test_timms_names_are_ours():
    state = vit_state()
    theirs, _ = KeyMap(rows=VIT_TIMM).to_theirs(state)
    assert same(theirs, state)


def test_rows_of_both_block_spellings_name_the_same_tensors():
    assert [ours for ours, _ in BLOCK] == [ours for ours, _ in BLOCK_IN_MEMORY]


def test_a_name_inside_a_longer_one_is_not_mistaken_for_it():
    theirs = tensors("layer.3.output.dense.bias", "layer.3.attention.output.dense.bias")
    ours, unknown = TOY.to_ours(theirs)
    assert unknown == []
    assert torch.equal(ours["blocks.3.out.bias"], theirs["layer.3.output.dense.bias"])
    assert torch.equal(ours["blocks.3.attn_out.bias"], theirs["layer.3.attention.output.dense.bias"])


def test_a_dot_stands_for_a_dot_alone():
    assert TOY.to_ours(tensors("convXweight")) == ({}, ["convXweight"])
    assert TOY.to_ours(tensors("layer.x.output.dense.bias"))[1] == ["layer.x.output.dense.bias"]
    assert TOY.to_ours(tensors("prefix.conv.weight"))[1] == ["prefix.conv.weight"]


def test_other_spellings_are_read_and_never_written():
    old = tensors("old.conv.weight")
    ours, unknown = TOY.to_ours(old)
    assert unknown == []
    assert list(TOY.to_theirs(ours)[0]) == ["conv.weight"]


def test_unknown_keys_are_returned_and_dropped_ones_are_not():
    ours, unknown = TOY.to_ours(tensors("conv.weight", "pooler.dense.bias", "a.index", "classifier.bias"))
    assert list(ours) == ["stem.weight"]
    assert unknown == ["classifier.bias"]


def test_a_fused_tensor_with_a_part_missing_is_not_made():
    ours, unknown = TOY.to_ours(tensors("layer.0.query.weight", "layer.0.value.weight"))
    assert ours == {}
    assert sorted(unknown) == ["layer.0.query.weight", "layer.0.value.weight"]


def test_the_same_tensor_in_two_spellings_is_used_once_and_the_other_named():
    both = tensors("conv.weight", "old.conv.weight")
    ours, unknown = TOY.to_ours(both)
    assert unknown == ["old.conv.weight"]
    assert same(ours, {"stem.weight": both["conv.weight"]})


@pytest.mark.parametrize("key", [torch.zeros(6, 3), torch.zeros(()), torch.zeros(6, 2, 1)])
def test_parts_that_do_not_fit_each_other_are_named_with_their_shapes(key):
    parts = tensors("layer.0.query.weight", "layer.0.key.weight", "layer.0.value.weight")
    with pytest.raises(InputError, match=r"layer\.0\.query\.weight \(6, 2\), layer\.0\.key\.weight \(.*\), layer"):
        TOY.to_ours(parts | {"layer.0.key.weight": key})


def test_what_they_have_no_name_for_is_returned_apart():
    state = tensors("stem.weight", "queue", "heads.0.weight")
    theirs, rest = TOY.to_theirs(state)
    assert list(theirs) == ["conv.weight"]
    assert same(rest, {name: state[name] for name in ("queue", "heads.0.weight")})


def test_a_prefix_goes_before_every_name_of_its_side():
    rows = prefixed((("a.{w}", "b.{w}"), ("qkv", ("q", "k"))), ours="net.", theirs="model.")
    assert rows == (("net.a.{w}", "model.b.{w}"), ("net.qkv", ("model.q", "model.k")))


@pytest.mark.parametrize(
    "wrapper",
    ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module._orig_mod.", "model.encoder.module."],
)
def test_wrappers_before_a_name_are_looked_through(wrapper):
    names = ["conv.weight", "layer.0.output.dense.bias"]
    theirs = tensors(*names)
    ours, unknown = TOY.to_ours(
        {wrapper + name: tensor for name, tensor in theirs.items()} | tensors(f"{wrapper}pooler.x")
    )
    assert unknown == [] and same(ours, TOY.to_ours(theirs)[0])


def test_a_compiled_part_inside_a_model_is_looked_through():
    ours, unknown = TOY.to_ours(tensors("layer.0._orig_mod.output.dense.bias"))
    assert unknown == [] and list(ours) == ["blocks.0.out.bias"]


def test_a_name_given_with_and_without_a_wrapper_and_an_unknown_one_are_reported():
    ours, unknown = TOY.to_ours(tensors("conv.weight", "module.conv.weight", "ema.conv.weight", "module.old"))
    assert list(ours) == ["stem.weight"]
    assert unknown == ["module.conv.weight", "ema.conv.weight", "module.old"]
