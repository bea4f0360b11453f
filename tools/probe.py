"""How well the linear probe chooses its C: on made problems, beside the best C and scikit-learn's.

    python tools/probe.py                      200 problems, into probe.jsonl
    python tools/probe.py --problems 20 --labels 500 --out short.jsonl

A problem has 2 to 100 classes, 20 to 5,000 labels, 16 to 128 features, a strong or weak signal, and
often a few strong directions that say nothing about the class. The best C of the grid is chosen on
the test samples, so no method that does not see them can be expected to reach it. scikit-learn's
`LogisticRegressionCV` has its defaults: ten C, folds of a fifth, the best accuracy.

Each problem is one line of the file. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

from ssl_train.evaluate.accuracy import top1
from ssl_train.evaluate.linear import GRID, linear_probe, standardise
from ssl_train.evaluate.logistic import logistic_path

TEST = 2000
GROUPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "all": lambda row: True,
    "fewer than 100 labels": lambda row: row["labels"] < 100,
    "100 to 999 labels": lambda row: 100 <= row["labels"] < 1000,
    "1,000 labels or more": lambda row: row["labels"] >= 1000,
    "at most 5 labels a class": lambda row: row["labels"] <= 5 * row["classes"],
    "2 to 4 classes": lambda row: row["classes"] < 5,
    "5 to 29 classes": lambda row: 5 <= row["classes"] < 30,
    "30 classes or more": lambda row: row["classes"] >= 30,
    "weak signal: the best C is right on less than half": lambda row: row["best"] < 0.5,
    "strong signal": lambda row: row["best"] >= 0.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--labels", type=int, default=5000, help="at most so many labels in a problem")
    parser.add_argument("--out", type=Path, default=Path("probe.jsonl"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # edges of the grid, small classes, iterations of scikit-learn
    lines = args.out.read_text("utf-8").splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines][: args.problems]
    for seed in range(len(rows), args.problems):
        rows.append(measured(seed, args.labels))
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], flush=True)
    print(table(rows))


def measured(seed: int, most: int) -> dict[str, Any]:
    """Top-1 of our choice, of scikit-learn's and of the best C on problem `seed`."""
    x, y, queries, truth = problem(seed, most)
    classes = int(y.max()) + 1
    began = time.process_time()
    ours = linear_probe(x, y, queries, truth)
    middle = time.process_time()
    a, b = standardise(x.double(), queries.double())
    theirs = scikit_learn(a, y, b, truth)
    ended = time.process_time()
    tops = [top1((b @ weight + bias).argmax(1), truth) for weight, bias in logistic_path(a, y, classes, GRID)]
    return {
        "seed": seed,
        "labels": len(y),
        "classes": classes,
        "features": x.shape[1],
        "ours": ours.top1,
        "theirs": theirs,
        "best": max(tops),
        "C": ours.C,
        "best C": GRID[int(np.argmax(tops))],
        "seconds": [round(middle - began, 2), round(ended - middle, 2)],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """How many points of top-1 each choice lies behind the best C: mean, median and most."""
    lines = [
        "| problems | number | best C | ours behind it: mean, median, most | scikit-learn: the same |",
        "|" + 5 * " --- |",
    ]
    for name, has in GROUPS.items():
        some = [row for row in rows if has(row)]
        if some:
            best = 100 * np.array([row["best"] for row in some])
            behind = [best - 100 * np.array([row[key] for row in some]) for key in ("ours", "theirs")]
            cells = [f"{lost.mean():.2f}, {np.median(lost):.2f}, {lost.max():.1f}" for lost in behind]
            lines.append(f"| {name} | {len(some)} | {best.mean():.1f} | {cells[0]} | {cells[1]} |")
    spent = np.sum([row["seconds"] for row in rows], axis=0)
    return "\n".join([*lines, f"CPU seconds: ours {spent[0]:.0f}, scikit-learn's {spent[1]:.0f}"])


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
    model = LogisticRegressionCV(cv=folds).fit(x.numpy(), y.numpy())
    return float(model.score(queries.numpy(), truth.numpy()))


if __name__ == "__main__":
    main()
