from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from ssl_train.evaluate import logistic
from ssl_train.evaluate.linear import ENOUGH, GRID, folds, linear_probe, standardise
from ssl_train.evaluate.logistic import logistic_path, path_along_axes, principal_axes


def blobs(n: int, d: int, classes: int, *, spread: float = 1.0, seed: int = 0):
    """Correlated float64 features of unequal scale around one centre per class."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(99)
    mix = torch.randn(d, d, generator=shared).double() * torch.logspace(0, -1.5, d).double()
    centres = torch.randn(classes, d, generator=shared).double()
    labels = torch.arange(n) % classes
    noise = torch.randn(n, d, generator=g).double()
    return (centres[labels] + spread * noise) @ mix + 2.0, labels


def gradient(x, labels, weight, bias, c):
    """Largest entry of autograd's gradient of C · Σ loss + ½‖W‖², per sample and unit of C."""
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    loss = c * F.cross_entropy(x @ w + b, labels, reduction="sum") + 0.5 * w.square().sum()
    loss.backward()
    return max(w.grad.abs().max().item(), b.grad.abs().max().item()) / (c * len(x))


def test_the_two_point_problem_has_its_closed_form():
    x = torch.tensor([[-1.0], [1.0]]).double().repeat(4, 1)
    labels = torch.tensor([0, 1]).repeat(4)
    for c in (0.01, 1.0, 100.0):
        [(weight, bias)] = logistic_path(x, labels, 2, [c], tolerance=1e-15)
        w = weight[0, 1].item()
        # d/dw of C · 8 log(1 + e^{-2w}) + w²
        assert w == pytest.approx(8 * c / (1 + math.exp(2 * w)), rel=1e-7)
        assert weight[0, 0].item() == pytest.approx(-w, rel=1e-7)
        assert bias.abs().max() < 1e-8


def test_without_features_the_bias_is_the_class_frequency():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    [(_, bias)] = logistic_path(torch.zeros(8, 3).double(), labels, 3, [1.0], tolerance=1e-15)
    assert F.softmax(bias, dim=0).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=1e-7)


@pytest.mark.parametrize(("n", "d", "classes"), [(300, 12, 5), (12, 40, 4), (40, 40, 3)])
def test_the_gradient_vanishes_along_the_whole_path(n, d, classes):
    x, labels = blobs(n, d, classes)
    strengths = [1e-4, 1e-2, 1.0, 30.0]
    path = logistic_path(x, labels, classes, strengths, tolerance=1e-15)
    for c, (weight, bias) in zip(strengths, path, strict=True):
        assert weight.shape == (d, classes) and bias.shape == (classes,)
        assert gradient(x, labels, weight, bias, c) < 1e-6
    assert gradient(x, labels, weight * 1.01, bias, 30.0) > 1e-5  # the measure can fail


@pytest.mark.parametrize(("n", "d"), [(200, 10), (12, 40)])
def test_a_path_ends_where_a_single_fit_does_and_takes_fewer_iterations(monkeypatch, n, d):
    x, labels = blobs(n, d, 4)
    *_, warm = logistic_path(x, labels, 4, [1e-3, 1e-1, 10.0], tolerance=1e-15)
    [cold] = logistic_path(x, labels, 4, [10.0], tolerance=1e-15)
    assert torch.allclose(warm[0], cold[0], atol=1e-5)
    shares = [F.softmax(x @ weight + bias, dim=1) for weight, bias in (warm, cold)]
    assert torch.allclose(*shares, atol=1e-5)
    # What is known of the curvature goes on to the next C.
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(logistic_path(x, labels, 4, [10 ** (-3 + i / 4) for i in range(17)], tolerance=1e-6))
    with pytest.warns(UserWarning, match="has not converged in 12 iterations"):
        list(logistic_path(x, labels, 4, [10.0], tolerance=1e-6))


def test_principal_axes_are_those_of_all_samples_and_serve_some_of_them():
    x, labels = blobs(60, 90, 4)
    x = x - x.mean(0)
    axes = principal_axes(x)
    torch.testing.assert_close(axes.T @ axes, torch.eye(60).double())
    torch.testing.assert_close(x @ axes @ axes.T, x)
    gram = (x @ axes).T @ (x @ axes)
    assert (gram - gram.diag().diag()).abs().max() < 1e-9 * gram.max()
    some = torch.arange(60) % 5 > 0
    [(weight, bias)] = path_along_axes(x[some] @ axes, labels[some], 4, [1.0], tolerance=1e-15)
    assert gradient(x[some], labels[some], axes @ weight, bias, 1.0) < 1e-6


def test_float32_comes_close_to_float64():
    x, labels = standardise(*blobs(400, 20, 4)[:1], torch.zeros(1, 20))[0], torch.arange(400) % 4
    for c in (1e-4, 1.0):
        [(exact, _)] = logistic_path(x, labels, 4, [c], tolerance=1e-15)
        [(single, _)] = logistic_path(x.float(), labels, 4, [c])
        assert single.dtype == torch.float32
        assert (single - exact).norm() < 0.02 * exact.norm()


def test_float32_stays_exact_where_every_sample_is_right():
    x, labels = blobs(200, 20, 4, spread=0.1)
    x, _ = standardise(x, x)
    losses = []
    for dtype in (torch.float32, torch.float64):
        *_, (weight, bias) = logistic_path(x.to(dtype), labels, 4, [1.0, 1e2, 1e4])
        weight, bias = weight.double(), bias.double()
        losses.append(F.cross_entropy(x @ weight + bias, labels).item())
    assert losses[1] < 1e-4
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_collinear_and_constant_features_are_no_trouble():
    x, labels = blobs(120, 6, 3)
    x = torch.cat([x, x, x.sum(1, keepdim=True), torch.ones(120, 2)], dim=1).float()
    train, _ = standardise(x, x)
    assert torch.isfinite(train).all() and train[:, -2:].abs().max() == 0
    for dtype in (torch.float32, torch.float64):
        path = logistic_path(train.to(dtype), labels, 3, [1e-3, 1.0, 1e3])
        assert all(torch.isfinite(weight).all() for weight, _ in path)


def test_coefficients_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = blobs(300, 12, 5)
    for c in (0.01, 1.0):
        theirs = linear_model.LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        theirs.fit(x.numpy(), labels.numpy())
        [(weight, bias)] = logistic_path(x, labels, 5, [c], tolerance=1e-15)
        assert torch.allclose(weight.T, torch.from_numpy(theirs.coef_), atol=1e-6)
        shift = bias - torch.from_numpy(theirs.intercept_)  # equal up to a constant
        assert (shift - shift.mean()).abs().max() < 1e-6


def test_digits_are_read_as_well_as_scikit_learn_reads_them():
    datasets = pytest.importorskip("sklearn.datasets")
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = (torch.from_numpy(part) for part in datasets.load_digits(return_X_y=True))
    x, y = x.float(), y.long()
    ours = linear_probe(x[:1200], y[:1200], x[1200:], y[1200:])
    a, b = standardise(x[:1200].double(), x[1200:].double())
    best = max(
        linear_model.LogisticRegression(C=c, max_iter=5000)
        .fit(a.numpy(), y[:1200].numpy())
        .score(b.numpy(), y[1200:].numpy())
        for c in (0.003, 0.03, 0.3, 3.0)
    )
    assert ours.top1 > best - 0.015 and ours.top1 > 0.9
    assert 1e-3 < ours.C < 1e2 and not ours.at_grid_edge
    same = linear_model.LogisticRegression(C=ours.C, max_iter=5000).fit(a.numpy(), y[:1200].numpy())
    assert ours.top1 == pytest.approx(same.score(b.numpy(), y[1200:].numpy()), abs=1 / 597 + 1e-9)


def test_the_probe_beats_chance_and_names_what_it_chose():
    x, y = blobs(800, 16, 4, spread=1.5)
    test, truth = blobs(400, 16, 4, spread=1.5, seed=1)
    got = linear_probe(x, y, test, truth)
    assert 0.6 < got.top1 < 1.0
    assert got.mean_per_class == pytest.approx(got.top1)  # the classes are equally many
    assert got.C in GRID and 0.6 < got.held_out_top1 <= 1.0
    assert got == linear_probe(x, y, test, truth)  # deterministic


def test_held_out_samples_are_not_fitted():
    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 2  # nothing to learn, but 300 dimensions know 200 labels by heart
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever C it takes
        got = linear_probe(x, y, x, y)
    assert got.top1 > 0.8 and got.held_out_top1 < 0.7


def test_the_test_data_decide_nothing():
    x, y = blobs(200, 8, 4, spread=2.0)
    test, truth = blobs(60, 8, 4, spread=2.0, seed=1)
    first = linear_probe(x, y, test, truth)
    other = linear_probe(x, y, test * 3 - 1, truth.flip(0))
    assert (first.C, first.held_out_top1) == (other.C, other.held_out_top1)


def test_scale_and_shift_of_features_do_not_matter():
    x, y = blobs(200, 8, 4, spread=2.0)
    test, truth = blobs(60, 8, 4, spread=2.0, seed=1)
    scale = torch.logspace(-3, 3, 8).double()
    first, other = linear_probe(x, y, test, truth), linear_probe(x * scale + 5, y, test * scale + 5, truth)
    assert (first.C, first.top1) == (other.C, other.top1)


def test_labels_may_have_gaps():
    x, y = blobs(120, 8, 3)
    names = torch.tensor([2, 7, 30])
    assert linear_probe(x, names[y], x, names[y]).top1 == linear_probe(x, y, x, y).top1


def test_separable_data_do_not_run_to_the_edge_of_the_grid():
    x, y = blobs(300, 8, 3, spread=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = linear_probe(x, y, x, y)
    assert got.top1 == 1.0 and not got.at_grid_edge


def test_the_upper_end_of_the_grid_is_told():
    x, y = blobs(400, 8, 4, spread=2.0)
    with pytest.warns(UserWarning, match="the end of the grid: a larger C may do better"):
        assert linear_probe(x, y, x, y, grid=(1e-7, 1e-2)).at_grid_edge


def problem(n: int, d: int, classes: int, signal: float, silent: float, seed: int = 0):
    """Training and test features and labels: class centres under noise and strong directions that
    say nothing."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n + 1000) % classes
    big = torch.randn(len(y), 8, generator=g) @ torch.randn(8, d, generator=g) * silent
    x = big + 0.3 * torch.randn(len(y), d, generator=g) + signal * torch.randn(classes, d, generator=g)[y]
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("labels", [60, 120, 256])
def test_a_weak_direction_is_found_below_strong_ones(labels):
    x, y, test, truth = problem(labels, 256, 2, signal=0.15, silent=3.0)
    assert linear_probe(x, y, test, truth).top1 > 0.95  # at 51.6 while C stopped on the plateau


def test_every_point_of_the_grid_is_tried():
    x, y, test, truth = problem(200, 64, 2, signal=0.1, silent=3.0)
    plateau = [1e-9, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6]  # all predict alike
    assert linear_probe(x, y, test, truth, grid=[*plateau, 1.0, 1e2, 1e3]).C >= 1.0


def test_collapsed_features_give_the_commonest_class():
    y = torch.tensor([0] * 30 + [1] * 50 + [2] * 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever C it takes
        got = linear_probe(torch.ones(100, 5), y, torch.ones(100, 5), y)
    assert got.top1 == 0.5 and got.mean_per_class == pytest.approx(1 / 3)


def test_every_fold_holds_out_a_tenth_of_every_class():
    y = torch.tensor([0] * 100 + [1] * 20 + [2] * 2 + [3])
    fold = folds(y, seed=0)
    counts = [[int((fold[y == label] == i).sum()) for i in range(10)] for label in range(4)]
    assert counts[:2] == [[10] * 10, [2] * 10]
    assert sorted(counts[2]) == [0] * 8 + [1] * 2  # never both at once
    assert counts[3] == [0] * 10 and fold[-1] == -1  # the only one of its class
    assert torch.equal(fold, folds(y, seed=0)) and not torch.equal(fold, folds(y, seed=1))


def test_small_classes_are_spread_over_the_folds():
    fold = folds(torch.arange(100).repeat_interleave(2), seed=0)
    assert fold.bincount(minlength=10).tolist() == [20] * 10


@pytest.mark.parametrize(("n", "held_out"), [(40, 40), (900, 900), (3000, 1200), (12_000, 1200)])
def test_folds_are_looked_at_until_they_hold_enough(n, held_out):
    x, y = blobs(n, 4, 4, spread=2.0)
    assert linear_probe(x, y, x, y, grid=(1.0,)).held_out == held_out
    assert held_out >= min(n, ENOUGH)


def test_bad_input_is_refused():
    x, y = blobs(20, 3, 2)
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(x, torch.zeros_like(y), x, y)
    with pytest.raises(ValueError, match="no class has two"):
        linear_probe(x[:2], y[:2], x, y)
    with pytest.raises(ValueError, match="train: 20 of 20 rows"):
        linear_probe(x * torch.nan, y, x, y)
    with pytest.raises(ValueError, match="test: 1 samples have no label"):
        linear_probe(x, y, x, y.index_fill(0, torch.tensor([0]), -1))
    with pytest.raises(ValueError, match="grid of C is empty"):
        linear_probe(x, y, x, y, grid=())
