"""BEiT's weights in transformers, timm and the authors' checkpoints, on random weights."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel

from ssl_beit import DVAE, BEiT, BEiTConfig, beit_loss
from ssl_beit.beit import masked_first
from ssl_beit.config import RECIPES
from ssl_core.config import ConfigError
from ssl_core.hub.layout import WeightsMismatch
from ssl_core.hub.weights_file import load_weights, save_weights
from ssl_train.cli.main import main

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 24,
    "use_mask_token": True,
    "use_shared_relative_position_bias": True,
    "drop_path_rate": 0.0,
}
FINE_TUNED = {
    **SIZES,
    "use_mask_token": False,
    "use_shared_relative_position_bias": False,
    "use_relative_position_bias": True,
    "num_labels": 5,
}
VIT = {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "heads": 2, "layer_norm_eps": 1e-6}
TOKENS = {"vocab": 24, "mask_patches": 6, "mask_block": 2}
TOKENIZER = {"tokenizer": "demo", "tokenizer_hidden": 8, "tokenizer_blocks": 1, "tokenizer_init": 4}
SMALL = BEiTConfig(**VIT, **TOKENS, **TOKENIZER)


def drawn(network: nn.Module) -> Any:
    """`network` in eval mode with every parameter drawn anew."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def ours(**fields: Any) -> BEiT:
    return drawn(BEiT(dataclasses.replace(SMALL, **fields)))


def images(c: int = 3, h: int = 32, w: int = 32) -> torch.Tensor:
    return torch.randn(2, c, h, w, generator=torch.Generator().manual_seed(1))


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def mask(n: int = 16) -> torch.Tensor:
    order = torch.rand(2, n, generator=torch.Generator().manual_seed(2)).argsort(1)
    return order < torch.tensor([[6], [3]])


@torch.no_grad()
def difference(beit: BEiT, theirs: BeitForMaskedImageModeling) -> float:
    """Largest difference of logits and of the loss on masked patches."""
    hidden, tokens = mask(), torch.randint(24, (2, 16), generator=torch.Generator().manual_seed(3))
    expected = theirs(images(), bool_masked_pos=hidden, labels=tokens[hidden])
    logits = beit.logits(images(), hidden)
    ids, weight = masked_first(hidden, 6)
    chosen = logits.gather(1, ids[..., None].expand(-1, -1, 24))
    loss = beit_loss(chosen, tokens.gather(1, ids), weight)
    return max((logits - expected.logits).abs().max().item(), abs(loss - expected.loss).item())


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
def test_what_transformers_saves_predicts_the_same_here(eps, tmp_path):
    theirs = drawn(BeitForMaskedImageModeling(BeitConfig(**SIZES, layer_norm_eps=eps)))
    theirs.save_pretrained(tmp_path)
    beit = BEiT.from_pretrained(tmp_path)
    assert (beit.config.layer_norm_eps, beit.config.tokenizer_hidden, beit.config.vocab) == (eps, 0, 24)
    assert difference(beit, theirs) < 1e-5


def test_what_is_saved_here_predicts_the_same_in_transformers(tmp_path):
    beit = ours()
    theirs, report = BeitForMaskedImageModeling.from_pretrained(
        beit.save_pretrained(tmp_path), output_loading_info=True
    )
    assert not any(report.values()), report
    assert difference(beit, theirs.eval()) < 1e-5


def test_the_wrong_epsilon_would_be_seen():
    a, b = ours(), ours(layer_norm_eps=1e-3)
    assert (a.logits(images(), mask()) - b.logits(images(), mask())).abs().max() > 1e-4


def test_weights_go_through_ours_and_come_back_with_the_same_bits(tmp_path):
    theirs = drawn(BeitForMaskedImageModeling(BeitConfig(**SIZES)))
    theirs.save_pretrained(tmp_path / "theirs")
    folder = BEiT.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    back = BeitForMaskedImageModeling.from_pretrained(folder).state_dict()
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_names_as_transformers_has_them_in_memory_load_too(tmp_path):
    theirs = drawn(BeitForMaskedImageModeling(BeitConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    on_disk = BEiT.from_pretrained(tmp_path)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "position_index" not in name}
    assert any(name.startswith("beit.layers.0.attention.q_proj") for name in state)
    assert "beit.shared_position_bias.relative_position_bias_table" in state
    save_weights(tmp_path / "model.safetensors", state)
    in_memory = BEiT.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(on_disk.parameters(), in_memory.parameters(), strict=True))


def test_beit_model_opens_our_folder_and_its_states_are_ours_before_the_norm(tmp_path):
    beit = ours()
    theirs, report = BeitModel.from_pretrained(beit.save_pretrained(tmp_path), output_loading_info=True)
    assert report["missing_keys"] == {"pooler.layernorm.weight", "pooler.layernorm.bias"}
    assert all(key.startswith(("lm_head.", "layernorm.")) for key in report["unexpected_keys"])
    assert not report["mismatched_keys"]
    states = theirs.eval()(images()).last_hidden_state
    assert torch.allclose(states, beit.encoder.tokens(images()), atol=1e-5)


@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
def test_an_exported_encoder_has_our_features(final_norm, tmp_path):
    alone = {"vocab": 0, "tokenizer_hidden": 0} if final_norm == "pooled" else {}
    beit = ours(final_norm=final_norm, pool="mean", **alone)
    beit.save_pretrained(tmp_path / "ours")
    assert main(RECIPES, ["export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    theirs, report = BeitModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(report.values()), report
    out = theirs.eval()(images())
    found = out.pooler_output if final_norm == "pooled" else out.last_hidden_state[:, 1:].mean(1)
    assert torch.allclose(found, beit.encode(images()), atol=1e-5)


def test_a_fine_tuned_model_is_an_encoder(tmp_path):
    theirs = drawn(BeitForImageClassification(BeitConfig(**FINE_TUNED)))
    theirs.save_pretrained(tmp_path / "theirs")
    beit = BEiT.from_pretrained(tmp_path / "theirs")
    assert (beit.config.vocab, beit.config.final_norm, beit.config.shared_bias) == (0, "pooled", False)
    expected = theirs.beit(images()).pooler_output
    assert torch.allclose(beit.encode(images()), expected, atol=1e-5)
    again = BEiT.from_pretrained(beit.save_pretrained(tmp_path / "ours"))
    assert torch.equal(again.encode(images()), beit.encode(images()))
    back, report = BeitModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.allclose(back.eval()(images()).pooler_output, expected, atol=1e-5)


def test_a_fine_tuned_model_may_read_cls_instead(tmp_path):
    theirs = drawn(BeitForImageClassification(BeitConfig(**FINE_TUNED, use_mean_pooling=False)))
    theirs.save_pretrained(tmp_path / "theirs")
    beit = BEiT.from_pretrained(tmp_path / "theirs")
    assert (beit.config.final_norm, beit.config.pool) == ("tokens", "cls")
    assert torch.allclose(beit.encode(images()), theirs.beit(images()).pooler_output, atol=1e-5)
    back, report = BeitModel.from_pretrained(beit.save_pretrained(tmp_path / "ours"), output_loading_info=True)
    assert not any(report.values()), report
    assert torch.allclose(back.eval()(images()).pooler_output, beit.encode(images()), atol=1e-5)


def test_another_size_is_what_transformers_computes(tmp_path):
    theirs = drawn(BeitForMaskedImageModeling(BeitConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    beit = BEiT.from_pretrained(tmp_path)
    x, hidden = images(h=48, w=48), mask(36)
    with torch.no_grad():
        expected = theirs(x, bool_masked_pos=hidden).logits
    assert torch.allclose(beit.logits(x, hidden), expected, atol=1e-5)
    larger = BEiT.from_pretrained(tmp_path, image_size=48)
    assert larger.config.grid == (6, 6)
    assert torch.allclose(larger.logits(x, hidden), expected, atol=1e-5)


def test_one_channel_equals_the_rgb_network_on_the_repeated_channel(tmp_path):
    beit = ours()
    grey = BEiT.from_pretrained(beit.save_pretrained(tmp_path), in_channels=1)
    x = torch.rand(2, 1, 32, 32)
    assert torch.allclose(grey.encode(2 * x - 1), beit.encode((2 * x - 1).expand(-1, 3, -1, -1)), atol=1e-5)
    assert torch.equal(grey.tokenize(x), beit.tokenize(x.expand(-1, 3, -1, -1)))
    assert grey.decode(grey.tokenize(x)).shape == (2, 1, 32, 32)


def timm_state(**model: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    import timm

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.1}
    network = drawn(timm.create_model("beit_base_patch16_224", **sizes, num_classes=0, **model))
    return network, {k: v for k, v in network.state_dict().items() if "index" not in k and not k.endswith("k_bias")}


def test_timms_fine_tuned_checkpoint_is_an_encoder(tmp_path):
    theirs, state = timm_state()
    torch.save({"model": state}, tmp_path / "beit.pth")
    beit = BEiT.from_pretrained(tmp_path / "beit.pth")
    assert (beit.config.dim, beit.config.depth, beit.config.heads, beit.config.grid) == (32, 2, 2, (4, 4))
    beit = BEiT.from_pretrained(tmp_path / "beit.pth", config=dataclasses.replace(beit.config, layer_norm_eps=1e-6))
    assert torch.allclose(beit.encode(images()), theirs(images()), atol=1e-5)


def test_the_authors_pretraining_checkpoint_loads_by_its_shapes(tmp_path):
    beit = ours()
    names = {"encoder.": "", ".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
    state = {}
    for name, tensor in beit.state_dict().items():
        if not name.startswith("tokenizer."):
            for old, new in names.items():
                name = name.replace(old, new)
            state[name] = tensor
    state["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    torch.save({"model": state}, tmp_path / "beit.pth")
    loaded = BEiT.from_pretrained(tmp_path / "beit.pth")
    assert (loaded.config.vocab, loaded.config.final_norm, loaded.config.mean) == (24, "tokens", (0.5,) * 3)
    assert torch.equal(loaded.logits(images(), mask()), beit.logits(images(), mask()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "model_type is 'vit': BEiT reads 'beit'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"use_absolute_position_embeddings": True}, "use_absolute_position_embeddings = True is not supported"),
        ({"use_relative_position_bias": True}, "use_relative_position_bias = True is not supported"),
        ({"layer_scale_init_value": 0.0}, "layer_scale = 0.0: must be above 0"),
        ({"num_attention_heads": 3}, "heads = 3: must divide the width 32"),
        ({"intermediate_size": None}, "intermediate_size = None: expected a positive number"),
        ({"image_size": 48}, r"shape: encoder.rel_pos_bias.relative_position_bias_table: \(52, 2\) in the file"),
    ],
)
def test_a_config_of_transformers_that_cannot_be_used_is_named(changes, message, tmp_path):
    drawn(BeitForMaskedImageModeling(BeitConfig(**SIZES))).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises((ConfigError, WeightsMismatch), match=message):
        BEiT.from_pretrained(tmp_path)


def test_a_checkpoint_of_something_else_is_named(tmp_path):
    save_weights(tmp_path / "a.safetensors", {"cls_token": torch.zeros(1, 1, 4)})
    with pytest.raises(ConfigError, match="not a BEiT: it holds no encoder.patch_embed.proj.weight"):
        BEiT.from_pretrained(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="not a dVAE: it holds no average.encoder.blocks.input.weight"):
        DVAE.from_pretrained(tmp_path / "a.safetensors")


def test_what_is_published_holds_everything(tmp_path):
    folder = ours().save_pretrained(tmp_path)
    heads = load_weights(folder / "heads.safetensors")
    assert heads and all(name.startswith("tokenizer.") for name in heads)
    published = load_weights(folder / "model.safetensors")
    assert "lm_head.weight" in published and "beit.embeddings.mask_token" in published
