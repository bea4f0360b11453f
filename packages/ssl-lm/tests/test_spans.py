"""Span corruption: the distribution of the spans, the published example, and its inversion."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_core.errors import InputError
from ssl_lm.config import T5Config
from ssl_lm.spans import corrupt_documents, corrupt_spans, noise_spans
from ssl_lm.t5 import relative_buckets

FIRST, EOS, PAD = 32099, 1, 0


def restored(inputs: list[int], targets: list[int], first: int = FIRST) -> list[int]:
    """The text before the corruption, from the meaning of the sentinels alone."""
    spans: dict[int, list[int]] = {}
    current = None
    for token in targets[: targets.index(EOS)]:
        if first - 100 < token <= first:
            current = spans.setdefault(token, [])
        else:
            assert current is not None, "the target begins without a sentinel"
            current.append(token)
    text = []
    for token in inputs[: inputs.index(EOS)]:
        text += spans[token] if first - 100 < token <= first else [token]
    return text


def mask_of(removed: str) -> Tensor:
    return torch.tensor([[letter == "x" for letter in removed]])


def test_the_papers_example():
    words = "Thank you for inviting me to your party last week .".split()
    numbers = {word: 100 + i for i, word in enumerate(words)}
    names = {number: word for word, number in numbers.items()} | {
        FIRST: "<X>",
        FIRST - 1: "<Y>",
        FIRST - 2: "<Z>",
        1: "</s>",
    }
    noise = torch.tensor([[word in ("for", "inviting", "last") for word in words]])
    inputs, targets = corrupt_spans(torch.tensor([[numbers[word] for word in words]]), noise, first_sentinel=FIRST)
    assert [names[t] for t in inputs[0].tolist()] == "Thank you <X> me to your party <Y> week . </s>".split()
    assert [names[t] for t in targets[0].tolist()] == "<X> for inviting <Y> last <Z> </s>".split()


@pytest.mark.parametrize("length", [2, 3, 7, 64, 284, 568])
def test_corruption_inverts_to_the_text(length):
    generator = torch.Generator().manual_seed(length)
    text = torch.randint(2, 32000, (200, length), generator=generator)
    noise = noise_spans(200, length, generator=generator)
    inputs, targets = corrupt_spans(text, noise, first_sentinel=FIRST)
    for row in range(200):
        assert restored(inputs[row].tolist(), targets[row].tolist()) == text[row].tolist()


@pytest.mark.parametrize("removed", ["x..", "xx.", "..x", ".x.", "xxx", "...", "x.x", "x.xx..x"])
def test_any_mask_inverts(removed):
    text = torch.arange(2, 2 + len(removed))[None]
    inputs, targets = corrupt_spans(text, mask_of(removed), first_sentinel=FIRST)
    assert restored(inputs[0].tolist(), targets[0].tolist()) == text[0].tolist()


def test_rows_of_different_numbers_of_spans_are_filled_up():
    text = torch.arange(2, 12).repeat(2, 1)
    noise = torch.cat([mask_of(".x........"), mask_of(".x.x.xx.x.")])
    inputs, targets = corrupt_spans(text, noise, first_sentinel=FIRST, pad_token_id=PAD)
    for row in range(2):
        alone = corrupt_spans(text[row : row + 1], noise[row : row + 1], first_sentinel=FIRST)
        for both, one in zip((inputs, targets), alone, strict=True):
            n = one.shape[1]
            assert both[row, :n].tolist() == one[0].tolist() and (both[row, n:] == PAD).all()


@pytest.mark.parametrize(("length", "removed", "spans"), [(568, 85, 28), (284, 43, 14), (141, 21, 7), (2, 1, 1)])
def test_every_row_loses_15_percent_in_spans_of_three(length, removed, spans):
    noise = noise_spans(500, length, generator=torch.Generator().manual_seed(0))
    assert (noise.sum(1) == removed).all()
    starts = noise & ~torch.cat([torch.zeros(500, 1, dtype=torch.bool), noise[:, :-1]], 1)
    assert (starts.sum(1) == spans).all()
    assert not noise[:, 0].any() and noise[:, -1].all(), "a kept span comes first, a removed one last"


def test_density_and_mean_span_are_those_asked_for():
    for density, mean in ((0.15, 3.0), (0.5, 3.0), (0.15, 10.0)):
        noise = noise_spans(50, 2000, density=density, mean_span=mean)
        starts = (noise[:, 1:] & ~noise[:, :-1]).sum()
        assert float(noise.float().mean()) == pytest.approx(density, abs=1e-3)
        assert float(noise.sum() / starts) == pytest.approx(mean, rel=0.02)


def test_lengths_of_spans_are_a_uniform_choice_of_cuts():
    """The first of 2 spans of 4 tokens has 1, 2 or 3, each equally often, and so do kept ones."""
    rows = 30_000
    noise = noise_spans(rows, 8, density=0.5, mean_span=2.0, generator=torch.Generator().manual_seed(1))
    seen: dict[tuple[int, ...], int] = {}
    for row in noise.int().tolist():
        runs = [len(run) for run in "".join(map(str, row)).replace("01", "0 1").replace("10", "1 0").split()]
        seen[tuple(runs)] = seen.get(tuple(runs), 0) + 1
    assert len(seen) == 9, f"three lengths kept times three removed: {sorted(seen)}"
    for count in seen.values():
        assert abs(count - rows / 9) < 4 * math.sqrt(rows * (1 / 9) * (8 / 9))


def test_masks_follow_the_generator():
    a, b, again = (noise_spans(4, 200, generator=torch.Generator().manual_seed(s)) for s in (0, 1, 0))
    assert torch.equal(a, again) and not torch.equal(a, b)


def test_the_config_knows_the_lengths_of_the_authors_code():
    for context, window, targets, spans in ((512, 568, 114, 28), (256, 284, 58, 14), (128, 141, 29, 7)):
        config = T5Config(context=context)
        assert (config.window, config.targets, config.spans) == (window, targets, spans)
        noise = noise_spans(2, window)
        inputs, labels = corrupt_spans(torch.full((2, window), 5), noise, first_sentinel=FIRST)
        assert inputs.shape[1] <= context and labels.shape[1] == targets


def test_more_spans_than_sentinels_are_an_error():
    text, noise = torch.full((1, 2274), 5), noise_spans(1, 2274)
    with pytest.raises(InputError, match="114 sentinels"):
        corrupt_spans(text, noise, first_sentinel=FIRST)
    with pytest.raises(ValueError, match="114 spans"):
        T5Config(context=2048)


def test_a_text_with_sentinels_is_an_error():
    with pytest.raises(InputError, match="sentinels already"):
        corrupt_spans(torch.tensor([[5, FIRST - 3, 6]]), mask_of(".x."), first_sentinel=FIRST)
    with pytest.raises(InputError, match="at least two"):
        noise_spans(1, 1)


def test_documents_go_where_their_tokens_go():
    text = torch.tensor([[10, 11, 12, 20, 21, 22, 23]])
    documents = text // 10
    noise = mask_of(".x.x..x")
    inputs, targets = corrupt_spans(text, noise, first_sentinel=FIRST)
    of_inputs, of_targets = corrupt_documents(documents, noise)
    assert inputs.tolist() == [[10, FIRST, 12, FIRST - 1, 21, 22, FIRST - 2, EOS]]
    assert of_inputs.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2]]
    assert targets.tolist() == [[FIRST, 11, FIRST - 1, 20, FIRST - 2, 23, EOS]]
    assert of_targets.tolist() == [[1, 1, 2, 2, 2, 2, 2]]


def test_buckets_of_relative_positions_are_the_authors():
    both = {-128: 15, -64: 14, -20: 10, -8: 8, -1: 1, 0: 0, 1: 17, 8: 24, 127: 31, 1000: 31}
    back = {-128: 31, -64: 26, -20: 17, -16: 16, -15: 15, -1: 1, 0: 0, 1: 0, 50: 0, -1000: 31}
    for goldens, bidirectional in ((both, True), (back, False)):
        found = relative_buckets(torch.tensor(list(goldens)), bidirectional=bidirectional)
        assert found.tolist() == list(goldens.values())
