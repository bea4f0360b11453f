from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_train.errors import EvaluationError
from ssl_train.evaluate.curve import SHARES, curve, drawn
from ssl_train.evaluate.linear import FOLDS, folds


def test_a_smaller_share_is_part_of_a_larger_one_and_every_class_gives_some():
    labels = torch.tensor([0] * 300 + [1] * 5)
    for seed in range(3):
        shares = [set(drawn(labels, share, seed).tolist()) for share in SHARES]
        assert [len(rows) for rows in shares] == [4, 16, 31, 305]
        assert shares[0] < shares[1] < shares[2] < shares[3] and shares[0] & set(range(300, 305))
    assert drawn(labels, 0.05, 0).tolist() != drawn(labels, 0.05, 1).tolist()


def test_groups_are_drawn_whole():
    groups = np.repeat(np.arange(50), 4)
    rows = drawn(torch.zeros(200, 3), 0.05, 0, groups)
    assert len(rows) == 12 and len(set(groups[rows].tolist())) == 3, "the first whose samples are enough"
    assert len(drawn(torch.zeros(200, 3), 1.0, 0, groups)) == 200


def test_a_share_that_is_too_small_is_told_and_the_whole_is_not_fitted_twice():
    def score(rows):
        if len(rows) < 10:
            raise EvaluationError("too few")
        assert len(rows) < 100
        return len(rows) / 100

    points = curve(score, torch.zeros(100).long(), whole=0.7)
    assert [point["mean"] for point in points] == [None, None, pytest.approx(0.1), 0.7]
    assert points[0]["why"] == "too few" and points[2]["interval"] < 1e-12 and points[3]["interval"] is None


def test_folds_hold_out_whole_groups_and_leave_every_class_some():
    targets, groups = torch.tensor([0] * 57 + [1] * 3), np.repeat(np.arange(20), 3)
    fold = folds(targets, 0, groups)
    assert all(len(set(fold[groups == group].tolist())) == 1 for group in range(20))
    assert (fold[targets == 1] == FOLDS).all(), "the only group of its class is never held out"
    with pytest.raises(EvaluationError, match="of one group"):
        folds(targets, 0, np.zeros(60, int))
