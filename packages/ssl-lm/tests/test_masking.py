"""Masking for BERT: the distribution of the masks, and the tokens that are never masked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_core.errors import InputError
from ssl_lm.attention import document_positions, same_document
from ssl_lm.masking import mask_tokens, select_words

VOCAB, PAD, CLS, SEP, MASK = 1000, 0, 2, 3, 4
SPECIAL = (0, 1, 2, 3, 4, 998, 999)


def text(rows: int, length: int, seed: int = 0) -> Tensor:
    """[CLS] ordinary tokens [SEP] and a quarter of padding."""
    tokens = torch.randint(5, 998, (rows, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = CLS
    tokens[:, 3 * length // 4] = SEP
    tokens[:, 3 * length // 4 + 1 :] = PAD
    return tokens


def masked(tokens: Tensor, seed: int = 0, **options: object) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fixed = {"vocab_size": VOCAB, "mask_token_id": MASK, "special_ids": SPECIAL, "generator": generator}
    return mask_tokens(tokens, **{**fixed, **options})  # type: ignore[arg-type]


def assert_share(successes: int, trials: int, share: float) -> None:
    sigma = math.sqrt(share * (1 - share) * trials)
    assert abs(successes - share * trials) <= 4 * sigma, f"{successes / trials:.4f} of {trials}, not {share}"


@pytest.mark.parametrize("length", [17, 512], ids=["short texts", "long texts"])
def test_a_million_tokens_are_masked_by_the_papers_shares(length):
    tokens = text(math.ceil(1_000_000 / (3 * length // 4 - 1)), length)
    inputs, labels = masked(tokens)
    ordinary = ~torch.isin(tokens, torch.tensor(SPECIAL))
    chosen = labels != -100
    count = int(chosen.sum())
    assert int(ordinary.sum()) >= 1_000_000
    assert_share(count, int(ordinary.sum()), 0.15)
    hidden, same = chosen & (inputs == MASK), chosen & (inputs == tokens)
    assert_share(int(hidden.sum()), count, 0.8)
    replaced = int((chosen & ~hidden & ~same).sum())
    ordinary_tokens = VOCAB - len(SPECIAL)
    assert_share(replaced, count, 0.1 * (1 - 1 / ordinary_tokens))  # one replacement in 993 is the token itself
    assert torch.equal(labels[chosen], tokens[chosen]), "a label is not the token that was there"
    assert torch.equal(inputs[~chosen], tokens[~chosen]), "a token changed that nobody is to predict"


def test_special_tokens_are_never_masked_nor_a_replacement():
    tokens = text(2000, 128)
    tokens[:, 5] = 999
    inputs, labels = masked(tokens, rate=0.9)
    special = torch.isin(tokens, torch.tensor(SPECIAL))
    assert (labels[special] == -100).all()
    new = inputs[(inputs != tokens) & (inputs != MASK)]
    assert len(new) > 5000 and not torch.isin(new, torch.tensor(SPECIAL)).any()
    assert set(new.tolist()) == set(range(5, 998)), "not every ordinary token replaces"


def test_replacements_are_uniform_over_the_ordinary_tokens():
    tokens = torch.full((4000, 256), 7)
    inputs, _ = masked(tokens, rate=0.8, vocab_size=25, special_ids=(0, 1, 2, 3, 4))
    new = inputs[(inputs != 7) & (inputs != MASK)]
    counts = torch.bincount(new, minlength=25)[5:].double()
    counts = counts[torch.arange(5, 25) != 7]
    expected = counts.sum() / 19
    assert ((counts - expected).square() / expected).sum() < 42.3, "chi-square of 18 degrees of freedom, p = 0.001"


def test_every_row_has_a_target_and_the_share_is_its_own():
    _, labels = masked(text(5000, 8))
    assert ((labels != -100).sum(1) >= 1).all()
    counts = (masked(text(5000, 64))[1] != -100).sum(1)  # 47 ordinary tokens
    assert set(counts.tolist()) == {7, 8}, "15 % of 47 is 7.05: seven or eight"


def test_a_fixed_number_of_targets_is_kept_as_far_as_there_are_tokens():
    tokens = text(200, 40)
    _, labels = masked(tokens, count=6)
    assert ((labels != -100).sum(1) == 6).all()
    tokens[:, 4:] = PAD  # three ordinary tokens are left
    assert ((masked(tokens, count=6)[1] != -100).sum(1) == 3).all()


def test_masks_are_drawn_anew_and_follow_the_generator():
    tokens = text(8, 64)
    a, b, again = (masked(tokens, seed=seed) for seed in (0, 1, 0))
    assert not torch.equal(a[1], b[1])
    assert torch.equal(a[0], again[0]) and torch.equal(a[1], again[1])


def test_whole_words_are_hidden_together_and_fill_the_budget_as_the_authors_code():
    generator = torch.Generator().manual_seed(3)
    tokens = text(300, 128)
    words = (torch.rand(300, 128, generator=generator) < 0.6).cumsum(1)
    _, labels = masked(tokens, words=words, count=14)
    chosen, ordinary = labels != -100, ~torch.isin(tokens, torch.tensor(SPECIAL))
    for row in range(300):
        whole = set(words[row][chosen[row]].tolist())
        members = torch.isin(words[row], torch.tensor(sorted(whole))) & ordinary[row]
        assert torch.equal(members, chosen[row]), "a part of a word was left"
    counts = chosen.sum(1)
    assert counts.max() == 14 and (counts == 14).float().mean() > 0.98, counts.unique(return_counts=True)


@pytest.mark.parametrize("seed", range(5))
def test_whole_words_are_chosen_as_a_loop_chooses_them(seed):
    generator = torch.Generator().manual_seed(seed)
    words = (torch.rand(20, 50, generator=generator) < 0.4).cumsum(1) - 1
    noise = torch.rand(20, 50, generator=generator)
    wanted = torch.randint(1, 12, (20,), generator=generator)
    selected = select_words(words, wanted, noise)
    for row in range(20):
        lengths = {w: int((words[row] == w).sum()) for w in words[row].tolist() if w >= 0}
        room, taken = max(int(wanted[row]), min(lengths.values())), set()
        for column in noise[row].argsort().tolist():  # column w is word w's draw
            if 0 < lengths.get(column, 0) <= room:
                taken.add(column)
                room -= lengths[column]
        assert set(words[row][selected[row]].tolist()) == taken


def test_a_text_of_special_tokens_only_is_an_error():
    tokens = text(3, 16)
    tokens[1] = PAD
    with pytest.raises(InputError, match="special tokens only"):
        masked(tokens)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_tokens_of_another_vocabulary_are_an_error(token):
    tokens = text(3, 16)
    tokens[0, 1] = token
    with pytest.raises(InputError, match="another tokenizer"):
        masked(tokens)


def test_packed_documents_have_positions_and_attention_of_their_own():
    documents = torch.tensor([[4, 4, 4, 7, 7, 9]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0]]
    expected = [[a == b for b in documents[0].tolist()] for a in documents[0].tolist()]
    assert same_document(documents, documents)[0, 0].tolist() == expected
