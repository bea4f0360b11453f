"""Weights that others wrote: transformers' folders with odd special tokens or in shards, and
nanoGPT's checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_core.config import ConfigError
from ssl_lm import GPT, T5, GPTConfig

transformers = pytest.importorskip("transformers")

IDS = torch.arange(2, 22).view(2, 10)


def gpt2(folder, **ids):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=311, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    edit(folder, **ids)
    return model


def edit(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@torch.no_grad()
def test_gpt2s_own_default_end_outside_the_vocabulary_means_none(tmp_path):
    theirs = gpt2(tmp_path, eos_token_id=50256)
    gpt = GPT.from_pretrained(tmp_path)
    assert gpt.config.eos_token_id is None
    torch.testing.assert_close(gpt.logits(IDS), theirs(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("given", "read"),
    [(-1, None), (311, None), (310, 310), (0, 0), (None, None), ([3], 3), ([3, 50256], 3), ([50256, -1], None)],
)
@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_an_id_outside_the_vocabulary_means_none(tmp_path, name, given, read):
    gpt2(tmp_path, **{name: given})
    assert getattr(GPT.from_pretrained(tmp_path).config, name) == read


def test_several_ends_are_read_as_none_with_a_warning(tmp_path):
    gpt2(tmp_path, eos_token_id=[3, 4])
    with pytest.warns(UserWarning, match=r"eos_token_id = \[3, 4\].* read as none"):
        assert GPT.from_pretrained(tmp_path).config.eos_token_id is None


def test_an_id_that_is_no_number_is_refused(tmp_path):
    gpt2(tmp_path, eos_token_id="3")
    with pytest.raises(ConfigError, match="eos_token_id"):
        GPT.from_pretrained(tmp_path)


def test_t5_reads_an_end_outside_its_vocabulary_as_none_and_its_first_token_as_the_pad(tmp_path):
    config = transformers.T5Config(vocab_size=311, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    edit(tmp_path, eos_token_id=400, pad_token_id=311, decoder_start_token_id=0)
    t5 = T5.from_pretrained(tmp_path)
    assert (t5.config.eos_token_id, t5.config.pad_token_id) == (None, 0)


def test_a_folder_in_shards_loads(tmp_path):
    theirs = gpt2(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="80KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    whole, parts = (GPT.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


class NanoBlock(nn.Module):
    """A block as nanoGPT writes it: nn.Linear, exact GELU, biases or none."""

    def __init__(self, dim, heads, bias):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim, bias=bias), nn.LayerNorm(dim, bias=bias)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(dim, 3 * dim, bias), "c_proj": nn.Linear(dim, dim, bias)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(dim, 4 * dim, bias), "c_proj": nn.Linear(4 * dim, dim, bias)})

    def forward(self, x):
        q, k, v = self.attn["c_attn"](self.ln_1(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # b h n d
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](y.transpose(1, 2).flatten(2))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Nano(nn.Module):
    """nanoGPT's model, by its names."""

    def __init__(self, bias, vocabulary=65, dim=32):
        super().__init__()
        parts = {"wte": nn.Embedding(vocabulary, dim), "wpe": nn.Embedding(16, dim)}
        parts |= {"h": nn.ModuleList(NanoBlock(dim, 2, bias) for _ in range(2)), "ln_f": nn.LayerNorm(dim, bias=bias)}
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(dim, vocabulary, bias=False)
        self.lm_head.weight = parts["wte"].weight

    def forward(self, ids):
        t = self.transformer
        x = t["wte"](ids) + t["wpe"](torch.arange(ids.shape[1]))
        for block in t["h"]:
            x = block(x)
        return self.lm_head(t["ln_f"](x))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "_orig_mod."], ids=["plain", "compiled"])
@pytest.mark.parametrize("bias", [True, False], ids=["biases", "none"])
def test_nanogpts_checkpoint_gives_the_same_logits(tmp_path, bias, prefix):
    torch.manual_seed(0)
    nano = Nano(bias)
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": bias, "vocab_size": 65, "dropout": 0.2}
    state = {prefix + key: tensor for key, tensor in nano.state_dict().items()}
    checkpoint = {"model": state, "optimizer": {"state": {}}, "model_args": args, "iter_num": 5, "config": {"out": "x"}}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    gpt = GPT.from_pretrained(tmp_path / "ckpt.pt")
    assert (gpt.config.eos_token_id, gpt.config.context, gpt.config.activation) == (None, 16, "gelu")
    torch.testing.assert_close(gpt.logits(IDS), nano(IDS), atol=1e-5, rtol=0)


def test_a_bare_checkpoint_of_transformers_names_needs_a_config_and_takes_one(tmp_path):
    theirs = gpt2(tmp_path / "folder")
    torch.save(theirs.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ConfigError, match=r"needs its config\.json"):
        GPT.from_pretrained(tmp_path / "bare.pt")
    config = GPTConfig(vocab_size=311, context=64, dim=48, depth=2, heads=4)
    expected = GPT.from_pretrained(tmp_path / "folder").state_dict()
    loaded = GPT.from_pretrained(tmp_path / "bare.pt", config=config).state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
