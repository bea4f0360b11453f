"""T5 v1.0 and v1.1 give the numbers and answers of transformers'; folders go both ways."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_core.hub.layout import WeightsMismatch
from ssl_lm.config import T5Config
from ssl_lm.t5 import T5

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VARIANTS = {"v1.0": {}, "v1.1": {"gated": True, "tied": False}}


def random_t5(variant: str = "v1.0", seed: int = 0, **changes: Any) -> T5:
    """A small random model whose attention is not uniform: three times the usual weights."""
    torch.manual_seed(seed)
    sizes = {"context": 40, "dim": 32, "depth": 2, "decoder_depth": 2, "heads": 4, "head_dim": 8, "hidden": 48}
    tokens = {"vocab_size": 120, "first_sentinel": 119, "sentinels": 10, "density": 0.3}
    positions = {"max_distance": 20, "buckets": 16}
    model = T5(T5Config(**{**sizes, **tokens, **positions, **VARIANTS[variant], **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def opened(ours: T5, folder: Path) -> transformers.T5ForConditionalGeneration:
    """The model that transformers makes of our folder, nothing missing or left over."""
    ours.save_pretrained(folder)
    model, report = transformers.T5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert {key for keys in report.values() for key in keys} == set()
    return model.eval()


def texts() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(2, 110, (4, 30))
    tokens[0, 17:] = 0
    return tokens, (tokens != 0).long()


@pytest.fixture(params=list(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[T5, transformers.T5ForConditionalGeneration]:
    ours = random_t5(request.param)
    return ours, opened(ours, tmp_path / "ours")


def test_logits_loss_and_gradients_are_theirs(pair):
    ours, theirs = pair
    tokens, mask = texts()
    said = torch.randint(2, 120, (4, 9))
    expected = theirs(tokens, attention_mask=mask, decoder_input_ids=said).logits
    assert (ours.logits(tokens, said) - expected).abs().max() < 1e-4
    labels = said.clone()
    labels[2, 5:] = -100
    result = theirs(tokens, attention_mask=mask, labels=labels)
    batch = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
    loss = ours(batch, 0.0)["loss"]
    assert loss.item() == pytest.approx(result.loss.item(), abs=1e-5)
    loss.backward()
    result.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = gradients[name]
        assert (parameter.grad - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=0.1), name


def test_the_encoder_is_theirs(pair):
    ours, theirs = pair
    tokens, mask = texts()
    states = theirs.encoder(tokens, attention_mask=mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert (ours.encode(tokens) - mean).abs().max() < 1e-4


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_generation_is_theirs(pair, beams, penalty):
    """24 texts; the end is a frequent token, so that some end early and some at the limit."""
    ours, theirs = pair
    torch.manual_seed(3)
    tokens = torch.randint(2, 110, (24, 12))
    tokens[:8, 7:] = 0
    ours.config = dataclasses.replace(ours.config, eos_token_id=often(ours, tokens, beams))
    theirs.generation_config.eos_token_id = ours.config.eos_token_id
    answers = ours.generate(tokens, max_new_tokens=14, num_beams=beams, length_penalty=penalty)
    options = {"max_new_tokens": 14, "num_beams": beams, "length_penalty": penalty if beams > 1 else 1.0}
    expected = theirs.generate(tokens, attention_mask=(tokens != 0).long(), do_sample=False, **options)[:, 1:]
    end = ours.config.eos_token_id
    assert [cut(row, end) for row in answers.tolist()] == [cut(row, end) for row in expected.tolist()]
    lengths = {len(cut(row, end)) for row in answers.tolist()}
    assert penalty > 1 or len(lengths) > 1, f"every answer has {lengths} tokens: nothing is tested of how they end"


def often(model: T5, tokens: Tensor, beams: int) -> int:
    """The token that stands in most answers after its first."""
    answers = model.generate(tokens, max_new_tokens=14, num_beams=beams)
    later = [set(row[1:]) - {0} for row in answers.tolist()]
    return max(range(2, 120), key=lambda token: sum(token in row for row in later))


def cut(row: list[int], end: int = 1) -> list[int]:
    """An answer up to its end: transformers fills up with end tokens, ours with padding."""
    return row[: row.index(end) + 1] if end in row else row


def test_cached_generation_says_what_whole_passes_say(pair):
    ours, _ = pair
    tokens, _ = texts()
    answers = ours.generate(tokens, max_new_tokens=10, num_beams=1)
    said = torch.zeros(4, 1, dtype=torch.long)
    for _ in range(answers.shape[1]):
        said = torch.cat([said, ours.logits(tokens, said)[:, -1:].argmax(-1)], 1)
    assert [cut(row) for row in said[:, 1:].tolist()] == [cut(row) for row in answers.tolist()]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_says_what_its_texts_say_alone(pair, beams):
    ours, _ = pair
    tokens, _ = texts()
    together = ours.generate(tokens, max_new_tokens=8, num_beams=beams)
    for row, text in zip(together.tolist(), tokens, strict=True):
        alone = ours.generate(text[text != 0][None], max_new_tokens=8, num_beams=beams)
        assert cut(row) == cut(alone[0].tolist())


def test_the_decoder_sees_nothing_that_comes_later(pair):
    ours, _ = pair
    tokens, _ = texts()
    said = torch.randint(2, 120, (4, 9))
    before = ours.logits(tokens, said)
    for place in range(9):
        changed = said.clone()
        changed[:, place] = 5
        after = ours.logits(tokens, changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place:], before[:, place:])


def test_what_transformers_saves_is_read_again(pair, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "again")
    again = T5.from_pretrained(tmp_path / "again")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_a_folder_of_transformers_alone_is_read(tmp_path, kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, feed_forward_proj=kind, tie_word_embeddings=kind == "relu")
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = T5.from_pretrained(tmp_path / "theirs")
    tokens, mask = texts()
    said = torch.randint(2, 110, (4, 5))
    expected = theirs(tokens, attention_mask=mask, decoder_input_ids=said).logits
    assert (ours.logits(tokens, said) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_tied_weights_are_stored_once(tmp_path):
    for variant, count in (("v1.0", 1), ("v1.1", 2)):
        stored = load_file(random_t5(variant).save_pretrained(tmp_path / variant) / "model.safetensors")
        assert [tuple(t.shape) for t in stored.values()].count((120, 32)) == count


def test_aliases_and_leftovers_of_published_files_load(tmp_path):
    ours = random_t5()
    path = ours.save_pretrained(tmp_path / "ours") / "model.safetensors"
    state = load_file(path)
    for alias in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        state[alias] = state["shared.weight"].clone()
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(16, 4)
    save_file(state, path)
    (path.parent / "SHA256SUMS").unlink()
    loaded = T5.from_pretrained(path.parent)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), ours.parameters(), strict=True))
    state["lm_head.weight"] += 1
    save_file(state, path)
    with pytest.raises(WeightsMismatch, match="ties it"):
        T5.from_pretrained(path.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [("feed_forward_proj", "gated-silu"), ("decoder_start_token_id", 5), ("model_type", "mt5"), ("d_model", 33)],
)
def test_an_architecture_that_we_do_not_have_is_refused(tmp_path, key, value):
    folder = random_t5().save_pretrained(tmp_path / "ours")
    values = json.loads((folder / "config.json").read_text())
    del values["ssl_core"]
    (folder / "config.json").write_text(json.dumps({**values, key: value}))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises((ConfigError, WeightsMismatch)):
        T5.from_pretrained(folder)


def test_packed_documents_do_not_see_each_other():
    model = random_t5()
    tokens, said = torch.randint(2, 110, (2, 20)), torch.randint(2, 110, (2, 10))
    labels = said.clone()
    labels[:, :6] = -100  # the second document begins with 5; its first token is said by one of the first
    documents = torch.tensor([[0] * 8 + [1] * 12]).expand(2, -1)
    of_labels = torch.tensor([[0] * 5 + [1] * 5]).expand(2, -1)
    inputs = model.shift(said)

    def loss(tokens: Tensor, inputs: Tensor) -> Tensor:
        packed = {"documents": documents, "label_documents": of_labels}
        return model({"input_ids": tokens, "labels": labels, "decoder_input_ids": inputs, **packed}, 0.0)["loss"]

    other, others_inputs = tokens.clone(), inputs.clone()
    other[:, :8], others_inputs[:, :6] = 5, 7
    assert torch.equal(loss(tokens, inputs), loss(other, others_inputs)), "the second document saw the first"
    other[:, 9] = 5
    assert not torch.equal(loss(tokens, inputs), loss(other, others_inputs))


def test_the_first_loss_is_that_of_guessing():
    for variant in VARIANTS:
        torch.manual_seed(0)
        model = T5(random_t5(variant).config)
        tokens, said = torch.randint(2, 110, (64, 30)), torch.randint(2, 110, (64, 20))
        loss = model({"input_ids": tokens, "labels": said}, 0.0)["loss"].item()
        assert loss == pytest.approx(torch.tensor(120.0).log().item() + 0.5, abs=0.3)  # logits of variance 1


def test_generation_restores_the_mode_and_needs_a_token_and_a_beam():
    model = random_t5()
    tokens, _ = texts()
    model.train().generate(tokens, max_new_tokens=2)
    assert model.training
    with pytest.raises(IndexError):
        model.generate(tokens + 1000, max_new_tokens=2)
    assert model.training
    for changes in ({"max_new_tokens": 0}, {"num_beams": 0}):
        with pytest.raises(InputError, match="at least 1"):
            model.generate(tokens, **changes)


def test_opening_our_folder_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(random_t5(), tmp_path / "ours")
