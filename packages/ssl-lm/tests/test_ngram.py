"""Counts of one to three tokens: the formula, and what follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssl_lm.ngram import NGram


def test_probabilities_sum_to_one_after_every_history():
    rng = np.random.default_rng(0)
    model = NGram(rng.integers(6, size=200), 7, 3)
    for a, b in [(0, 1), (5, 5), (6, 6), (3, 6)]:
        p = [math.exp(-model.nll(np.array([a, b, c]))[0]) for c in range(7)]
        assert sum(p) == pytest.approx(1, abs=1e-9) and min(p) > 0


def test_probabilities_are_those_of_the_formula():
    stream = [0, 1, 0, 1, 0, 2]
    model = NGram(np.array(stream), 3, 2)
    uni = {0: 4 / 9, 1: 3 / 9, 2: 2 / 9}
    p = (2 + 2 * uni[1]) / (3 + 2)  # 0 is followed twice by 1 and once by 2
    assert math.exp(-model.nll(np.array([0, 1]))[0]) == pytest.approx(p)
    assert math.exp(-model.nll(np.array([2, 1]))[0]) == pytest.approx(uni[1]), "nothing was seen after 2"
    assert np.exp(-NGram(np.array(stream), 3, 1).nll(np.array([0, 2]))).tolist() == pytest.approx([uni[0], uni[2]])


def test_longer_histories_predict_a_regular_text_better():
    stream = np.tile([0, 1, 0, 2], 100)
    means = [NGram(stream, 3, order).nll(stream[:50]).mean() for order in (1, 2, 3)]
    assert means[0] > means[1] > means[2] and means[2] < 0.05
    with pytest.raises(ValueError, match="1, 2 or 3"):
        NGram(stream, 3, 4)
