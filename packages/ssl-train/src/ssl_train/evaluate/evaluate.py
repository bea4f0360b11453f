"""Several encoders under the same protocols on the same data: what `evaluation.json` holds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_train.errors import EvaluationError
from ssl_train.evaluate.accuracy import clustered, interval_of, macro_f1, mean_per_class, top1
from ssl_train.evaluate.curve import DRAWS, SHARES, curve
from ssl_train.evaluate.features import Encode, Features, extract_each
from ssl_train.evaluate.fewshot import HEADS, C, draw, fewshot, shots_for
from ssl_train.evaluate.findings import knn_scores, linear_scores, rank
from ssl_train.evaluate.knn import HEADLINE, TEMPERATURE, knn
from ssl_train.evaluate.linear import COARSE, FOLDS, GRID, fitted, scored

Pair = tuple[Features, Features]  # of the training data, of the test data


class Data(NamedTuple):
    """What a protocol reads of an encoder."""

    x: Tensor
    """training features (n, d)"""
    y: Tensor
    """labels (n,), or findings (n, c)"""
    queries: Tensor
    """test features (m, d)"""
    truth: Tensor
    """labels (m,), or findings (m, c)"""
    groups: np.ndarray | None
    """of the training samples (n,)"""
    test_groups: np.ndarray | None
    """of the test samples (m,)"""
    names: list[str]
    """of the classes or findings"""


PROTOCOLS = ("knn", "linear", "fewshot", "curve")
USUAL = PROTOCOLS[:3]
RANKED = 20
"""Up to so many classes each has an AUROC of its own."""
LINEAR_SEED = 0
COLUMNS = {"knn": "k-NN", "linear": "linear", "finetune": "fine-tune"}  # few-shot has one for each n


LINEAR_HEAD = "logistic regression on standardised features, C by the loss of held-out training data"
FEWSHOT_HEAD = "logistic regression on L2-normalised features"


def evaluate(
    encoders: Mapping[str, Encode | Pair],
    train: Any,
    test: Any,
    transform: Any,
    protocols: Sequence[str] = USUAL,
    shots: Sequence[int] | None = None,
    *,
    data: str,
    seeds: int = 10,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """The accuracy of each encoder under each protocol as a dict for JSON, shares in [0, 1].

    An encoder is a callable on uint8 (b, c, h, w) batches (a method's `encode`, those of
    `features.BASELINES`), or a pair of Features extracted before. `train` and `test` are Sources,
    each read once for all callables; without callables they may be None. `data` is their name.
    `rows` has one dict an encoder: the headline figures `knn`, `linear` and `fewshot` (for the
    first of `shots`, by default `shots_for`), all others under `details`. `protocol` says how they
    came about. Samples without a label are left out and counted. Raises EvaluationError when train
    and test are the same, when their classes differ and where a protocol does, ValueError when rows
    are not of the same samples.

    Of findings, headline figures are mean AUROC, "fewshot" is left out, as no number of samples a
    class can be drawn, and `curve` takes its place. Samples with `groups` are held out and drawn
    together, and intervals count them so.
    """
    if not encoders or shots == () or not protocols or not set(protocols) <= set(PROTOCOLS):
        what = f"evaluate needs encoders, shots and protocols out of {', '.join(PROTOCOLS)}, got"
        raise ValueError(f"{what} {list(encoders)}, {shots} and {list(protocols)}")
    start = time.perf_counter()
    options = dict(batch_size=batch_size, device=device, precision=precision, workers=workers, progress=progress)
    pairs = _extracted(encoders, train, test, transform, options)
    labels = _same_labels(pairs)
    if labels.ndim == 2:
        protocols = list(dict.fromkeys("curve" if protocol == "fewshot" else protocol for protocol in protocols))
    shots = shots or (shots_for(labels) if labels.ndim == 1 else 0,)
    seconds = round(time.perf_counter() - start, 3)
    first, second = next(iter(pairs.values()))
    facts = {
        "train": _facts(first, train),
        "test": _facts(second, test),
        **({"classes": len(torch.unique(labels))} if labels.ndim == 1 else {"findings": labels.shape[1]}),
        "precision": precision,  # of the network that gave the features
        "seconds": seconds,  # reading the data and encoding it, all encoders together
        **_settings(protocols, labels, shots, seeds),
    }
    # The fits run in float64, which Apple's GPUs do not have.
    heads = torch.device("cpu" if torch.device(device).type == "mps" else device)
    rows = []
    for name, (a, b) in pairs.items():
        x, y, test_x, test_y = (part.to(heads) for part in (*a.labelled(), *b.labelled()))
        names = list(a.classes or map(str, range(int(labels.max()) + 1)))
        found = Data(x, y, test_x, test_y, a.labelled_groups(), b.labelled_groups(), names)
        rows.append({"features": name, **_row(found, protocols, shots, seeds)})
    return {"data": data, "protocol": facts, "rows": rows}


def table(result: Mapping[str, Any]) -> str:
    """The result of `evaluate` as plain text: top-1, or mean AUROC, in percent, and what it was
    measured on.

    Rows may have a `finetune` figure besides, and lack any other.
    """
    protocol, rows = result["protocol"], result["rows"]
    head = ["features"] + [title for key, title in COLUMNS.items() if any(key in row for row in rows)]
    shots = protocol.get("fewshot", {}).get("shots", [])
    tested = protocol.get("test", {}).get("n", 0)
    lines = [head + [f"{n}-shot" for n in shots], *(_cells(row, head, len(shots), tested) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    text.insert(1, "-" * len(text[0]))
    notes = [f"{protocol[part]['n']} {part}" for part in ("train", "test") if part in protocol]
    notes += [f"k = {protocol['knn']['k']}"] if "knn" in protocol else []
    notes += ["95 % intervals"] if tested else []
    notes += [f"± over {len(protocol['fewshot']['seeds'])} draws"] if shots else []
    metric = f"mean AUROC of {protocol['findings']} findings" if "findings" in protocol else "top-1"
    text.append(f"{metric} in % on {result['data']}" + (f": {', '.join(notes)}" if notes else ""))
    for part in ("train", "test"):
        left_out = {key: protocol.get(part, {}).get(key, 0) for key in ("skipped", "unlabelled")}
        if any(left_out.values()):
            counts = f"{left_out['skipped']} unreadable, {left_out['unlabelled']} unlabelled"
            text.append(f"{part}: {counts} samples left out")
    return "\n".join(text)


def _cells(row: Mapping[str, Any], head: Sequence[str], shots: int, tested: int) -> list[str]:
    cells = [row["features"]]
    for key in (key for key, title in COLUMNS.items() if title in head):
        cell = f"{100 * row[key]:.1f}" if key in row else "-"
        if key in row and (ends := interval_of(row, key, tested)):
            cell += " ({:.1f}–{:.1f})".format(*(100 * end for end in ends))
        cells.append(cell)
    if "fewshot" not in row:
        return cells + ["-"] * shots
    runs = row["details"]["fewshot"]["logistic"]
    return cells + [f"{100 * few['mean']:.1f} ± {100 * few['interval']:.1f}" for few in runs]


def _extracted(
    encoders: Mapping[str, Encode | Pair], train: Any, test: Any, transform: Any, options: dict[str, Any]
) -> dict[str, Pair]:
    """A pair for every encoder, in their order."""
    callables = {name: encoder for name, encoder in encoders.items() if callable(encoder)}
    pairs = {name: encoder for name, encoder in encoders.items() if not callable(encoder)}
    if callables:
        if train is None or test is None or transform is None:
            raise ValueError("train, test and transform are needed to extract features")
        check_apart(train, test)
        a = extract_each(callables, train, transform, **options)
        b = extract_each(callables, test, transform, **options)
        pairs |= {name: (a[name], b[name]) for name in callables}
    return {name: pairs[name] for name in encoders}


def check_apart(train: Any, test: Any) -> None:
    """Raises EvaluationError if two sources are the same samples."""
    if train.fingerprint() == test.fingerprint():
        what = "train and test are the same samples, so that knowing them by heart would count:"
        raise EvaluationError(f"{what} give data with a split, or a test set of its own")


def check_classes(
    train: Sequence[str] | None, test: Sequence[str] | None, labels: Iterable[int], truth: Iterable[int]
) -> None:
    """Raises EvaluationError unless both parts have the same classes, and all labels of the test
    data, `truth`, occur in the training data."""
    if train is not None and test is not None and list(train) != list(test):
        what = "train and test have other classes, so a label does not mean the same in both:"
        raise EvaluationError(f"{what} {list(train)[:20]} and {list(test)[:20]}")
    if unseen := set(truth) - set(labels):
        raise EvaluationError(f"labels {sorted(unseen)[:20]} of the test data have no training sample")


def _same_labels(pairs: Mapping[str, Pair]) -> Tensor:
    """Labels (n,) of the training samples. ValueError where rows would not be comparable."""
    name, (train, test) = next(iter(pairs.items()))
    labels, truth = train.labelled()[1], test.labelled()[1]
    if labels.shape[1:] != truth.shape[1:]:
        raise EvaluationError("train has one label a sample and test several, or other findings: give both alike")
    seen = ((), ()) if labels.ndim == 2 else (labels.tolist(), truth.tolist())
    check_classes(train.classes, test.classes, *seen)
    for other, (a, b) in pairs.items():
        if not torch.equal(a.labelled()[1], labels) or not torch.equal(b.labelled()[1], truth):
            raise ValueError(f"features {other!r} and {name!r} have other labels: compare features of the same samples")
    return labels


def _facts(features: Features, source: Any) -> dict[str, Any]:
    n = len(features.labelled()[1])
    facts = {"n": n, "skipped": len(features.skipped), "unlabelled": len(features) - n}
    return facts if source is None else {**facts, "fingerprint": source.fingerprint()}


def _settings(protocols: Sequence[str], labels: Tensor, shots: Sequence[int], seeds: int) -> dict[str, Any]:
    """How each protocol was run, the same for every encoder; for few-shot the rows drawn."""
    grid = GRID if labels.ndim == 1 else COARSE  # of findings each has a probe
    settings = {
        "knn": {"head": "votes exp(cosine / T) of the k nearest", "k": min(HEADLINE, len(labels)), "T": TEMPERATURE},
        "linear": {"head": LINEAR_HEAD, "grid": list(grid), "folds": FOLDS, "seed": LINEAR_SEED},
        "fewshot": {"head": FEWSHOT_HEAD, "C": C, "shots": list(shots), "seeds": list(range(seeds))},
        "curve": {"head": LINEAR_HEAD, "grid": list(COARSE), "shares": list(SHARES), "draws": DRAWS},
    }
    settings["fewshot"]["interval"] = "half width, 95 %, Student's t"
    if "fewshot" in protocols:
        # seed, class, shot -> row among the labelled training samples; n shots are the first n
        drawn = [draw(labels, max(shots), seed).tolist() for seed in range(seeds)]
        settings["fewshot"]["indices"] = drawn
    return {protocol: settings[protocol] for protocol in protocols}


def _row(data: Data, protocols: Sequence[str], shots: Sequence[int], seeds: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    details: dict[str, Any] = {"dim": data[0].shape[1]}
    seconds, ends = {}, {}
    for protocol in protocols:
        start = time.perf_counter()
        if protocol == "knn":
            row["knn"], details["knn"], ends["knn"] = _knn(data)
        elif protocol == "linear":
            row["linear"], details["linear"], ends["linear"] = _linear(data)
        elif protocol == "curve":
            some = partial(_share, data)
            details["curve"] = curve(some, data.y, data.groups, whole=row.get("linear"))
        else:
            row["fewshot"], details["fewshot"] = _fewshot(data, shots, seeds)
        seconds[protocol] = round(time.perf_counter() - start, 3)
    own = {key: list(pair) for key, pair in ends.items() if pair is not None}
    return {**row, **({"intervals": own} if own else {}), "details": details, "seconds": seconds}


Scored = tuple[float, dict[str, Any], Any]
"""Headline figure, details, interval of the figure unless Wilson's is meant."""


def _knn(data: Data) -> Scored:
    x, y, queries, truth = data[:4]
    headline = min(HEADLINE, len(x))
    if y.ndim == 2:
        found = {k: rank(p, truth, data.names, data.test_groups) for k, p in knn_scores(x, y, queries).items()}
        best = _ranked(found[headline])
        return best["mean"], {str(k): _without_each(ranked) for k, ranked in found.items()}, best["interval"]
    predicted = knn(x, y, queries)
    scores = {
        str(k): {"top1": top1(p, truth), "mean_per_class": mean_per_class(p, truth), "macro_f1": macro_f1(p, truth)}
        for k, p in predicted.items()
    }
    return scores[str(headline)]["top1"], scores, _ends(predicted[headline], data)


def _linear(data: Data, grid: Sequence[float] = GRID) -> Scored:
    x, y, queries, truth = data[:4]
    if y.ndim == 2:
        logits, chosen = linear_scores(x, y, queries, seed=LINEAR_SEED, groups=data.groups)
        ranked = rank(logits, truth, data.names, data.test_groups)
        best = _ranked(ranked)
        return best["mean"], {**ranked, "C": chosen}, best["interval"]
    found = fitted(x, y, queries, grid=grid, seed=LINEAR_SEED, groups=data.groups)
    details, classes = asdict(scored(found, truth)), found.classes
    if len(classes) <= RANKED:  # each class against all others; of two classes the second
        some = slice(1, None) if len(classes) == 2 else slice(None)
        score = found.logits.softmax(1) if len(classes) > 2 else found.logits - found.logits.flip(1)
        names = [data.names[int(label)] for label in classes[some]]
        details |= rank(score[:, some], (truth[:, None] == classes[some]).long(), names, data.test_groups)
    return details["top1"], details, _ends(classes[found.logits.argmax(1)], data)


def _ranked(found: dict[str, Any]) -> dict[str, Any]:
    if found["auroc"]["mean"] is None:
        raise EvaluationError("no finding has both a positive and a negative in the test data, so nothing is measured")
    return found["auroc"]


def _without_each(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "each"}


def _ends(predicted: Tensor, data: Data) -> tuple[float, float] | None:
    return None if data.test_groups is None else clustered(predicted == data.truth, data.test_groups)


def _share(data: Data, rows: np.ndarray) -> float:
    """The figure of the linear probe on these training rows alone."""
    where = torch.from_numpy(rows).to(data.x.device)
    groups = None if data.groups is None else data.groups[rows]
    return _linear(data._replace(x=data.x[where], y=data.y[where], groups=groups), COARSE)[0]


def _fewshot(data: Data, shots: Sequence[int], seeds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = ("shots", "mean", "std", "interval", "accuracies")
    runs: dict[str, Any] = {}
    for head in HEADS:
        found = [fewshot(*data[:4], shots=n, seeds=seeds, head=head) for n in shots]
        runs[head] = [{key: getattr(few, key) for key in keys} for few in found]
    first = runs["logistic"][0]
    return {key: first[key] for key in ("shots", "mean", "interval")}, runs
