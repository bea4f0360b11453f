"""GPT looks back and never ahead, with the cache and without, whatever the padding."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_text import IDS

from ssl_core.config import ConfigError
from ssl_lm import GPT, GPTConfig
from ssl_lm.attention import Cache, attend, attention_weights, causal_mask
from ssl_lm.sampling import choose


def make(*, context=32, depth=3, seed=0, **changes) -> GPT:
    """A random network whose logits are far apart, in eval mode."""
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=64, context=context, dim=24, depth=depth, heads=3, **{**IDS, **changes})
    gpt = GPT(config).eval()
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return gpt


@pytest.fixture(scope="module")
def gpt():
    return make(eos_token_id=None)


def tokens(b=2, t=12, seed=0):
    return torch.randint(4, 64, (b, t), generator=torch.Generator().manual_seed(seed))


def test_changing_a_token_changes_nothing_before_it_in_any_layer(gpt):
    seen = []
    handles = [block.register_forward_hook(lambda _, __, x: seen.append(x)) for block in gpt.transformer.h]
    ids = tokens(1)
    with torch.no_grad():
        before = [*[gpt.logits(ids)], *seen]
        for place in range(1, 12):
            seen.clear()
            changed = ids.clone()
            changed[0, place] = (changed[0, place] + 1) % 64
            after = [*[gpt.logits(changed)], *seen]
            for layer, (x, y) in enumerate(zip(before, after, strict=True)):
                assert torch.equal(x[:, :place], y[:, :place]), f"layer {layer} sees token {place} before its time"
                assert not torch.equal(x[:, place], y[:, place])
    for handle in handles:
        handle.remove()


def test_the_test_above_catches_a_network_without_the_causal_mask(gpt, monkeypatch):
    monkeypatch.setattr("ssl_lm.gpt.attend", lambda q, k, v, *_, **__: attend(q, k, v))
    with pytest.raises(AssertionError, match="before its time"):
        test_changing_a_token_changes_nothing_before_it_in_any_layer(gpt)


@pytest.mark.parametrize("parts", [[12], [1] * 12, [5, 7], [4, 1, 1, 6]], ids=str)
@torch.no_grad()
def test_the_cache_gives_the_features_of_every_token_of_the_whole_text(gpt, parts):
    ids = tokens()
    cache = gpt.cache(2, 12)
    seen = torch.cat([gpt.hidden(part, None, cache) for part in ids.split(parts, 1)], 1)
    assert cache.length == 12
    torch.testing.assert_close(seen, gpt.hidden(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_later_tokens_change_nothing_before_them_with_the_cache_either(gpt):
    ids = tokens()
    first, second = gpt.cache(2, 12), gpt.cache(2, 12)
    a = gpt.hidden(ids[:, :8], None, first), gpt.hidden(ids[:, 8:], None, first)
    b = gpt.hidden(ids[:, :8], None, second), gpt.hidden(ids[:, 8:].flip(1), None, second)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    assert torch.equal(first.keys[:, :, :, :8], second.keys[:, :, :, :8])


def greedy_without_cache(gpt, ids, new, window=None):
    """The oracle: all tokens again at every step."""
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, gpt.logits(ids if window is None else window(ids))[:, -1:].argmax(-1)], 1)
    return ids


def test_cached_and_uncached_generation_agree_token_for_token(gpt):
    ids = tokens(3, 5)
    assert torch.equal(gpt.generate(ids, 27, temperature=0), greedy_without_cache(gpt, ids, 27))


def test_drawn_tokens_agree_as_well(gpt):
    ids, generator = tokens(2, 4), torch.Generator().manual_seed(5)
    expected = ids
    with torch.no_grad():
        for _ in range(20):
            new = choose(gpt.logits(expected)[:, -1], temperature=0.9, top_k=20, top_p=0.9, generator=generator)
            expected = torch.cat([expected, new[:, None]], 1)
    assert torch.equal(gpt.generate(ids, 20, 0.9, top_k=20, top_p=0.9, seed=5), expected)


def test_a_full_context_slides_to_its_newer_half():
    gpt = make(context=8, eos_token_id=None)
    starts = {}

    def window(ids):
        n = ids.shape[1]
        start = starts.get(n - 1, 0)
        starts[n] = start = n - 4 if n - start > 8 else start
        return ids[:, start:]

    ids = tokens(2, 3)
    assert torch.equal(gpt.generate(ids, 30, 0, overflow="slide"), greedy_without_cache(gpt, ids, 30, window))


@torch.no_grad()
def test_left_and_right_padding_change_nothing(gpt):
    ids = tokens(1, 7)
    alone = gpt.logits(ids)
    for left, right in ((5, 0), (0, 5), (2, 3)):
        padded = torch.nn.functional.pad(ids, (left, right), value=9)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        assert torch.isfinite(gpt.logits(padded, mask)).all()
        torch.testing.assert_close(gpt.logits(padded, mask)[:, left : left + 7], alone, atol=1e-5, rtol=1e-5)


def test_a_left_padded_batch_writes_what_each_prompt_writes_alone(gpt):
    prompts = [tokens(1, n, seed=n) for n in (3, 7, 5)]
    ids = torch.cat([torch.nn.functional.pad(p, (7 - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(p), (7 - p.shape[1], 0)) for p in prompts])
    together = gpt.generate(ids, 20, 0, attention_mask=mask)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row[7 - prompt.shape[1] :], gpt.generate(prompt, 20, 0)[0])


def test_a_row_ends_with_its_eos_and_stays_there():
    gpt = make(eos_token_id=3)
    ids = tokens(8, 4)
    out = gpt.generate(ids, 28, 1.0, seed=0)[:, 4:]
    ended = [row.tolist() for row in out if 3 in row]
    assert 0 < len(ended), "no row ends: the test shows nothing"
    assert all(set(row[row.index(3) :]) == {3} for row in ended)
    with torch.no_grad():
        gpt.transformer.wte.weight[3] = 100 * gpt.hidden(ids)[:, -1].mean(0)
    assert gpt.generate(ids[:1], 28, 0).shape[1] < 32


def test_generation_restores_the_mode_and_repeats_with_a_seed():
    gpt = make(dropout=0.3, eos_token_id=None).train()
    ids = tokens()
    assert torch.equal(gpt.generate(ids, 9, seed=1), gpt.generate(ids, 9, seed=1))
    assert not torch.equal(gpt.generate(ids, 9, seed=1), gpt.generate(ids, 9, seed=2))
    assert gpt.training
    steps = gpt.stream(ids, 9)
    next(steps)
    steps.close()
    assert gpt.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(t=33), "33 tokens, more than the context of 32"),
        (dict(t=30, new=9), "exceed the context of 32.*overflow='slide'"),
        (dict(t=0), "needs a token"),
        (dict(new=0), "must be positive"),
        (dict(temperature=-1.0), "temperature"),
        (dict(temperature=math.inf), "temperature"),
        (dict(top_k=0), "top_k"),
        (dict(top_p=0.0), "top_p"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_errors(gpt, call, message):
    options = {"t": 3, "new": 2, **call}
    ids, new = tokens(1, options.pop("t")), options.pop("new")
    with pytest.raises(ConfigError, match=message):
        gpt.generate(ids, new, **options)


def test_more_tokens_than_the_context_are_an_error(gpt):
    with pytest.raises(ValueError, match="33 tokens do not fit into the context of 32"):
        gpt.logits(tokens(1, 33))
    cache = Cache((1, 1, 1, 2, 1), like=torch.zeros(1))
    with pytest.raises(ValueError, match="room for 2 tokens"):
        cache.extend(0, torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1))


def test_choose_keeps_exactly_k_among_equals_and_the_smallest_nucleus():
    g = torch.Generator().manual_seed(0)
    equal = torch.zeros(2000, 10)
    assert len(set(choose(equal, top_k=3, generator=g).tolist())) == 3
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    many = p.log().expand(4000, 4)
    assert set(choose(many, top_p=0.74, generator=g).tolist()) == {0, 1}
    assert set(choose(many, top_p=0.76, generator=g).tolist()) == {0, 1, 2}
    assert set(choose(many, top_p=0.01, generator=g).tolist()) == {0}
    share = (choose(many, top_k=3, top_p=0.8, generator=g) == 0).float().mean()  # of .5, .25, .15: three of 0.9
    assert abs(share - 0.5 / 0.75) < 0.05
    shares = torch.bincount(choose(many, temperature=0.5, generator=g), minlength=4) / 4000
    torch.testing.assert_close(shares, p**2 / (p**2).sum(), atol=0.04, rtol=0)
    assert choose(many[:1], temperature=0).tolist() == [0]


def test_the_loss_before_training_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=512, context=64, dim=64, depth=4, heads=4))
    ids = torch.randint(512, (8, 65))
    assert abs(gpt({"input_ids": ids}, 0.0)["loss"].item() - math.log(512)) < 0.1


def test_weights_begin_as_the_paper_says():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=1000, context=64, dim=128, depth=8, heads=4))
    for name, p in gpt.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.full_like(p, float("ln_" in name and name.endswith("weight"))))
        else:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert abs(p.std().item() / expected - 1) < 0.05, name


def test_matrices_and_their_gradients_are_contiguous_as_in_the_files(tmp_path):
    gpt = make()
    gpt({"input_ids": tokens()}, 0.0)["loss"].backward()
    loaded = GPT.from_pretrained(gpt.save_pretrained(tmp_path))
    matrices = [name for name, p in gpt.named_parameters() if ".h." in name and p.ndim == 2]
    assert len(matrices) == 4 * 3
    for name in matrices:
        ours, theirs = gpt.get_parameter(name), loaded.get_parameter(name)
        assert ours.is_contiguous() and theirs.is_contiguous() and torch.equal(ours, theirs)
        assert ours.grad.is_contiguous(), "the fused optimisers take twice as long otherwise"


def test_encode_is_the_mean_over_the_text_without_padding(gpt):
    ids = tokens(1, 6)
    with torch.no_grad():
        expected = gpt.hidden(ids).mean(1)
        for pad in (0, -1):
            padded = torch.nn.functional.pad(ids, (0, 4), value=pad)
            torch.testing.assert_close(gpt.encode(padded), expected, atol=1e-5, rtol=1e-5)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (4, 0))
        left = torch.nn.functional.pad(ids, (4, 0), value=9)
        torch.testing.assert_close(gpt.encode(left, mask), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_maps_are_the_weights_that_attention_uses(gpt):
    ids = tokens(2, 9)
    maps = gpt.attention_maps(ids)
    assert maps.shape == (3, 2, 3, 9, 9)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 3, 9))
    assert (maps.triu(1) == 0).all()
    x = gpt.transformer.wte(ids) + gpt.transformer.wpe.weight[:9]
    block = gpt.transformer.h[0]
    q, k, v = block.attn.split(block.ln_1(x))
    torch.testing.assert_close(maps[0] @ v, attend(q, k, v, causal=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (1, 5), (3, 5)])
def test_attention_is_softmax_of_products_times_values(dtype, n, m):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, size, 8, generator=g).to(dtype) for size in (n, m, m))
    scores = (q.double() @ k.double().transpose(-2, -1)) * 8**-0.5
    expected = scores.masked_fill(~causal_mask(n, m), -math.inf).softmax(-1) @ v.double()
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(attend(q, k, v, causal=True).double(), expected, atol=tolerance, rtol=tolerance)
    added = torch.zeros(n, m, dtype=dtype).masked_fill(~causal_mask(n, m), -1e9)
    torch.testing.assert_close(attend(q, k, v, added).double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(attention_weights(q, k).sum(-1), torch.ones(2, 3, n, dtype=dtype), atol=0.02, rtol=0)


def test_a_vocabulary_that_the_data_has_yet_to_decide_is_an_error():
    with pytest.raises(ConfigError, match="vocab_size = None: the data's tokenizer decides it"):
        GPT(GPTConfig(vocab_size=None))
    with pytest.raises(ConfigError, match="eos_token_id = 64"):
        GPTConfig(vocab_size=64, eos_token_id=64)
