from __future__ import annotations

import math

import pytest

from ssl_train.optim import warmup_cosine


def mae(step, *, per_epoch, epochs, warmup_epochs, lr, min_lr):
    """The authors' `adjust_learning_rate` at its fractional epoch."""
    epoch = step / per_epoch
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * share))


def test_it_begins_at_0_peaks_where_the_warm_up_ends_and_falls_to_the_end():
    rates = [warmup_cosine(step, total=100, warmup=10, peak=0.5) for step in range(100)]
    assert rates[0] == 0.0 and rates[10] == 0.5 == max(rates)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[5] == pytest.approx(0.25) and rates[55] == pytest.approx(0.25)
    assert 0 < rates[-1] < 0.001


def test_without_warm_up_it_begins_at_the_peak():
    assert warmup_cosine(0, total=10, warmup=0, peak=0.5) == 0.5


@pytest.mark.parametrize("min_lr", [0.0, 1e-5])
def test_every_step_is_that_of_maes_code(min_lr):
    for step in range(8 * 20):
        ours = warmup_cosine(step, total=8 * 20, warmup=8 * 3, peak=0.002, final=min_lr)
        assert ours == pytest.approx(mae(step, per_epoch=8, epochs=20, warmup_epochs=3, lr=0.002, min_lr=min_lr))


def test_it_ends_near_the_final_value():
    assert warmup_cosine(999, total=1000, warmup=0, peak=1.0, final=0.1) == pytest.approx(0.1, abs=1e-4)


def test_a_warm_up_as_long_as_the_run_does_not_divide_by_zero():
    assert warmup_cosine(10, total=10, warmup=10, peak=0.5) == 0.5
