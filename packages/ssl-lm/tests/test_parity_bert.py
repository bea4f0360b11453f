"""BERT computes what transformers' BertForMaskedLM computes, and folders go both ways."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_core.hub.layout import WeightsMismatch
from ssl_lm.bert import BERT
from ssl_lm.config import BERTConfig
from ssl_lm.views import masked
from ssl_train.optim import build_optimizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOKENS: Any = {"unk_token_id": 1, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}


def theirs(**changes: Any) -> transformers.BertForMaskedLM:
    """A small random model; biases and norms are random too."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 24}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**{**sizes, **layers, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    theirs().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and token types, one row padded."""
    torch.manual_seed(1)
    tokens, types = torch.randint(1, 120, (3, 20)), torch.randint(0, 2, (3, 20))
    tokens[0, 14:] = 0
    return tokens, (tokens != 0).long(), types


def config(**changes: Any) -> BERTConfig:
    small = {"vocab_size": 120, "context": 24, "dim": 32, "depth": 2, "heads": 4, "hidden": 48}
    return BERTConfig(**{**small, **TOKENS, **changes})


def random_bert() -> BERT:
    torch.manual_seed(2)
    model = BERT(config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def test_logits_are_theirs(folder):
    tokens, mask, types = batch()
    expected = theirs()(tokens, attention_mask=mask, token_type_ids=types).logits
    ours = BERT.from_pretrained(folder)
    assert (ours.logits(tokens, mask, types) - expected).abs().max() < 1e-4
    assert torch.equal(ours.logits(tokens, None, types), ours.logits(tokens, mask, types)), "padding is not text"


def test_the_loss_is_theirs_whether_or_not_positions_are_given(folder):
    tokens = batch()[0].clamp(min=5)
    labels = torch.where(torch.rand(3, 20) < 0.3, tokens, -100)
    expected = pytest.approx(theirs()(tokens, labels=labels).loss.item(), abs=1e-5)
    ours = BERT.from_pretrained(folder)
    assert ours({"input_ids": tokens, "labels": labels}, 0.0)["loss"].item() == expected
    count = int((labels != -100).sum(1).max())
    positions = (labels != -100).int().sort(dim=1, descending=True, stable=True).indices[:, :count]
    picked = {"input_ids": tokens, "positions": positions, "labels": labels.gather(1, positions)}
    assert ours(picked, 0.0)["loss"].item() == expected


def test_the_gradient_is_theirs(folder):
    tokens, _, _ = batch()
    tokens, labels = tokens.clamp(min=5), tokens.clamp(min=5)
    model, ours = theirs(), BERT.from_pretrained(folder)
    model(tokens, labels=labels).loss.backward()
    ours({"input_ids": tokens, "labels": labels}, 0.0)["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = gradients[name].clone()
        if name.endswith("word_embeddings.weight"):
            expected[0] = parameter.grad[0]  # theirs stops the gradient of the pad token's row
        assert torch.allclose(parameter.grad, expected, atol=1e-5), name


def test_training_on_our_batches_goes_as_theirs_does(folder):
    ours = BERT.from_pretrained(folder).train()
    settings = dataclasses.replace(ours.config, vocab_size=120, dropout=0.0, base_lr=0.1, **TOKENS)
    ours.config, model = settings, theirs(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    for block in ours.modules():
        if hasattr(block, "dropout"):
            block.dropout = 0.0
    view, rng = masked(settings), np.random.default_rng(0)
    optimizers = [build_optimizer(m, settings) for m in (ours, model)]
    losses = []
    for _ in range(8):
        windows = torch.randint(5, 120, (4, settings.window))
        documents = torch.arange(settings.window).expand(4, -1) // 9
        made = [view({"input_ids": w, "documents": d}, rng) for w, d in zip(windows, documents, strict=True)]
        sample = {key: torch.stack([one[key] for one in made]) for key in made[0]}
        tokens, packed = sample["input_ids"], sample["documents"]
        labels = torch.full_like(tokens, -100).scatter_(1, sample["positions"], sample["labels"])
        steps = torch.stack([torch.cat([torch.arange(int(n)) for n in row.bincount()]) for row in packed])
        unseen = (packed[:, None, :, None] != packed[:, None, None, :]) * torch.finfo(torch.float32).min
        pair = [ours(sample, 0.0)["loss"]]
        pair.append(model(tokens, attention_mask=unseen, position_ids=steps, labels=labels).loss)
        for loss, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append([loss.item() for loss in pair])
    mine, expected = torch.tensor(losses).T
    assert torch.allclose(mine, expected, atol=1e-3)
    assert expected.std() > 0.05, "nothing was trained"


def test_the_spread_of_initial_weights_is_a_setting_that_both_sides_know(tmp_path):
    wide = BERT(config(dim=64, hidden=256, init_std=0.125))
    for name, parameter in wide.named_parameters():
        if parameter.ndim > 1 and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.125, rel=0.1), name
    wide.save_pretrained(tmp_path / "ours")
    assert transformers.BertConfig.from_pretrained(tmp_path / "ours").initializer_range == 0.125
    theirs(initializer_range=0.25).save_pretrained(tmp_path / "theirs")
    assert BERT.from_pretrained(tmp_path / "theirs").config.init_std == 0.25


def test_transformers_opens_our_folder(tmp_path):
    ours = random_bert()
    ours.save_pretrained(tmp_path / "ours")
    model, report = transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {key for keys in report.values() for key in keys} == set()
    tokens, mask, types = batch()
    expected = ours.logits(tokens, mask, types)
    assert (model.eval()(tokens, attention_mask=mask, token_type_ids=types).logits - expected).abs().max() < 1e-4
    headless, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    assert missing == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(key.startswith("cls.") for key in unexpected), unexpected
    states = headless.eval()(tokens, attention_mask=mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert (ours.encode(tokens) - mean).abs().max() < 1e-4


def test_what_transformers_saves_again_is_still_ours(tmp_path):
    ours = random_bert()
    ours.save_pretrained(tmp_path / "ours")
    transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "again")
    again = BERT.from_pretrained(tmp_path / "again")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


def test_tied_weights_are_stored_once(tmp_path):
    stored = load_file(random_bert().save_pretrained(tmp_path / "ours") / "model.safetensors")
    assert [tuple(t.shape) for t in stored.values()].count((120, 32)) == 1
    assert not [key for key in stored if "decoder" in key]


def test_old_spellings_load(folder):
    """TensorFlow's names of norms, aliases of tied weights, heads that we do not have."""
    path = folder / "model.safetensors"
    state = load_file(path)
    expected = BERT.from_pretrained(folder).state_dict()
    old = {}
    for key, tensor in state.items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[key] = tensor
    old["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(24)[None]
    for name, shape in (("bert.pooler.dense", (32, 32)), ("cls.seq_relationship", (2, 32))):
        old[f"{name}.weight"], old[f"{name}.bias"] = torch.zeros(shape), torch.zeros(shape[0])
    save_file(old, path)
    loaded = BERT.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_a_head_of_its_own_is_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"] + 1
    save_file(state, path)
    with pytest.raises(WeightsMismatch, match="ties it"):
        BERT.from_pretrained(folder)


def test_a_model_without_head_says_what_is_missing(tmp_path):
    theirs().bert.save_pretrained(tmp_path / "headless")
    with pytest.raises(WeightsMismatch, match=r"missing: cls\.predictions\.bias"):
        BERT.from_pretrained(tmp_path / "headless")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("model_type", "gpt2"),
        ("hidden_size", 33),
        ("num_attention_heads", "4"),
        ("vocab_size", -1),
    ],
)
def test_an_architecture_that_we_do_not_have_is_refused(folder, key, value):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises((ConfigError, WeightsMismatch)):
        BERT.from_pretrained(folder)


def test_a_text_longer_than_the_context_is_an_error():
    with pytest.raises(InputError, match="25 tokens, the model reads 24"):
        random_bert().logits(torch.full((1, 25), 7))


def test_packed_documents_do_not_see_each_other():
    model = random_bert()
    tokens, documents = torch.randint(5, 120, (2, 20)), torch.tensor([[0] * 8 + [1] * 12]).expand(2, -1)
    labels = torch.full((2, 20), -100)
    labels[:, 10:] = tokens[:, 10:]
    other = tokens.clone()
    other[:, :8] = 5
    together, changed = (
        model({"input_ids": x, "labels": labels, "documents": documents}, 0.0)["loss"] for x in (tokens, other)
    )
    assert torch.equal(together, changed), "the second document saw the first"
    alone = model({"input_ids": tokens[:, 8:], "labels": labels[:, 8:]}, 0.0)["loss"]
    assert together.item() == pytest.approx(alone.item(), abs=1e-5)


def test_padding_on_either_side_changes_nothing():
    model, tokens = random_bert(), torch.randint(5, 120, (2, 12))
    padded = torch.nn.functional.pad(tokens, (0, 9))
    assert (model.encode(padded) - model.encode(tokens)).abs().max() < 1e-5
    assert (model.logits(padded)[:, :12] - model.logits(tokens)).abs().max() < 1e-5


def test_masks_are_filled_by_the_most_probable_tokens():
    model, tokens = random_bert(), torch.randint(5, 120, (1, 12))
    tokens[0, [3, 8]] = 4
    probabilities, found = model.fill(tokens, top_k=5)
    expected = model.logits(tokens)[0, [3, 8]].softmax(-1).topk(5)
    assert torch.equal(found, expected.indices) and torch.allclose(probabilities, expected.values)
    with pytest.raises(InputError, match="no mask"):
        model.fill(torch.full((1, 12), 7))


def test_pseudo_likelihood_masks_one_token_at_a_time():
    model, tokens = random_bert(), torch.tensor([2, 7, 8, 9, 30, 3])
    found = model.pseudo_nll(tokens, batch_size=3)
    for k, place in enumerate(range(1, 5)):
        hidden = tokens.clone()
        hidden[place] = 4
        log_p = model.logits(hidden[None])[0, place].log_softmax(-1)[tokens[place]]
        assert found[k].item() == pytest.approx(-log_p.item(), abs=1e-5)


def test_attention_maps_are_those_of_transformers(folder):
    tokens, mask, _ = batch()
    model = theirs(attn_implementation="eager")
    expected = torch.stack(model(tokens, attention_mask=mask, output_attentions=True).attentions)
    assert (BERT.from_pretrained(folder).attention_maps(tokens) - expected).abs().max() < 1e-5
