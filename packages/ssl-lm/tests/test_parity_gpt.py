"""GPT beside transformers' GPT2LMHeadModel on the same random weights."""

from __future__ import annotations

import pytest
import torch

from ssl_lm import GPT, GPTConfig

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["gelu_new", "gelu"])
def pair(request, tmp_path_factory):
    """(ours, theirs), both in eval mode."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=300, context=48, dim=48, depth=3, heads=4, activation=request.param, eos_token_id=7, pad_token_id=0
    )
    ours = GPT(config).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    folder = ours.save_pretrained(tmp_path_factory.mktemp("gpt"))
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return ours, theirs.eval()


def tokens(b=3, t=20):
    return torch.randint(8, 300, (b, t), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_and_loss_are_theirs(pair):
    ours, theirs = pair
    ids = tokens()
    expected = theirs(ids, labels=ids)
    torch.testing.assert_close(ours.logits(ids), expected.logits, atol=1e-4, rtol=0)
    assert abs(float(ours({"input_ids": ids}, 0.0)["loss"] - expected.loss)) < 1e-5


@torch.no_grad()
def test_logits_of_a_padded_batch_are_theirs(pair):
    ours, theirs = pair
    ids, mask = tokens(), torch.ones(3, 20, dtype=torch.int64)
    mask[0, :6] = mask[1, :1] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    there = mask.bool()
    torch.testing.assert_close(ours.logits(ids, mask)[there], expected[there], atol=1e-4, rtol=0)


def test_gradients_are_theirs(pair):
    ours, theirs = pair
    ids = tokens()
    ours({"input_ids": ids}, 0.0)["loss"].backward()
    theirs(ids, labels=ids).loss.backward()
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, theirs.get_parameter(name).grad, atol=1e-5, rtol=1e-4, msg=name)
    ours.zero_grad(set_to_none=True)
    theirs.zero_grad(set_to_none=True)


def test_greedy_generation_is_theirs(pair):
    ours, theirs = pair
    ids = tokens(4, 6)
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, pad_token_id=7, eos_token_id=7
    )
    assert torch.equal(ours.generate(ids, 30, temperature=0), expected)


def test_greedy_generation_of_left_padded_prompts_is_theirs(pair):
    ours, theirs = pair
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.int64)
    mask[0, :5] = mask[2, :2] = 0
    expected = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=7, eos_token_id=7
    )
    assert torch.equal(ours.generate(ids, 20, temperature=0, attention_mask=mask), expected)


def test_the_tokenizer_beside_the_weights_opens_in_transformers(tmp_path):
    from tiny_text import IDS, VOCABULARY, tiny_tokenizer, write_text

    gpt = GPT(GPTConfig(vocab_size=VOCABULARY, context=16, dim=8, depth=1, heads=1, **IDS))
    gpt.tokenizer = tiny_tokenizer()
    gpt.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = write_text(20, seed=5)
    assert theirs(text)["input_ids"] == tiny_tokenizer().encode(text).ids
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.mask_token_id) == (0, 3, 4)
    assert GPT.from_pretrained(tmp_path).tokenizer.encode(text).ids == tiny_tokenizer().encode(text).ids
