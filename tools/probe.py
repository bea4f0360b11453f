"""How well the linear probe chooses its C: on made problems, beside the best C and scikit-learn's.

    python tools/probe.py                      200 problems
    python tools/probe.py --problems 20 --labels 500

A problem has 2 to 100 classes, 20 to 5,000 labels, 16 to 128 features, a strong or weak signal, and
often a few strong directions that say nothing about the class. The best C of the grid is chosen on
the test samples, so no method that does not see them can be expected to reach it. scikit-learn's
`LogisticRegressionCV` has its defaults: ten C, folds of a fifth, the best accuracy.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

from ssl_train.evaluate.accuracy import top1
from ssl_train.evaluate.linear import GRID, linear_probe, standardise
from ssl_train.evaluate.logistic import logistic_path

TEST = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--labels", type=int, default=5000, help="at most so many labels in a problem")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # edges of the grid, small classes
    rows, seconds = [], np.zeros(2)
    for seed in range(args.problems):
        x, y, queries, truth = problem(seed, args.labels)
        began = time.perf_counter()
        ours = linear_probe(x, y, queries, truth).top1
        middle = time.perf_counter()
        a, b = standardise(x.double(), queries.double())
        theirs = scikit_learn(a, y, b, truth)
        seconds += [middle - began, time.perf_counter() - middle]
        path = logistic_path(a, y, int(y.max()) + 1, GRID)
        best = max(top1((b @ weight + bias).argmax(1), truth) for weight, bias in path)
        rows.append((ours, theirs, best))
        shares = " ".join(f"{100 * share:.1f}" for share in rows[-1])
        print(f"{seed}: {len(y)} labels, {int(y.max()) + 1} classes: ours, scikit-learn, best: {shares}", flush=True)

    figures = 100 * np.array(rows)  # problem, (ours, theirs, best)
    behind = figures[:, 2:] - figures[:, :2]
    print(f"\n| {len(rows)} problems | top-1 | behind the best C, mean | median | most | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for i, name in enumerate(("`linear_probe`", "`LogisticRegressionCV`")):
        lost = behind[:, i]
        spread = f"{lost.mean():.2f} | {np.median(lost):.2f} | {lost.max():.1f}"
        print(f"| {name} | {figures[:, i].mean():.2f} | {spread} | {seconds[i]:.0f} |")


def problem(seed: int, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training features (n, d), labels, test features and labels, all drawn from `seed`."""
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    classes, d = (round(np.exp(rng.uniform(np.log(low), np.log(high)))) for low, high in ((2, 100), (16, 128)))
    few = max(20, 3 * classes)
    n = round(np.exp(rng.uniform(np.log(few), np.log(max(few, most)))))
    signal = np.exp(rng.uniform(np.log(0.05), np.log(2)))
    noise = rng.uniform(0, 4) if rng.random() < 0.7 else 0.0  # of the directions that say nothing
    labels = torch.arange(n + TEST) % classes
    centres = torch.randn(classes, d, generator=g) * signal
    silent = torch.randn(n + TEST, 8, generator=g) @ torch.randn(8, d, generator=g) * noise
    x = centres[labels] + torch.randn(n + TEST, d, generator=g) + silent
    return x[:n], labels[:n], x[n:], labels[n:]


def scikit_learn(x: Tensor, y: Tensor, queries: Tensor, truth: Tensor) -> float:
    folds = min(5, int(y.bincount().min()))
    model = LogisticRegressionCV(cv=folds, max_iter=500).fit(x.numpy(), y.numpy())
    return float(model.score(queries.numpy(), truth.numpy()))


if __name__ == "__main__":
    main()
