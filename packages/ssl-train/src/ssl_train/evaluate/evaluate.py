"""Several encoders under the same protocols on the same data: what `evaluation.json` holds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ssl_train.errors import EvaluationError
from ssl_train.evaluate.accuracy import mean_per_class, top1, wilson
from ssl_train.evaluate.features import Encode, Features, extract_each
from ssl_train.evaluate.fewshot import HEADS, C, draw, fewshot, shots_for
from ssl_train.evaluate.knn import HEADLINE, TEMPERATURE, knn
from ssl_train.evaluate.linear import FOLDS, GRID, linear_probe

Pair = tuple[Features, Features]  # of the training data, of the test data
Data = tuple[Tensor, Tensor, Tensor, Tensor]  # training features, labels, test features, labels

PROTOCOLS = ("knn", "linear", "fewshot")
LINEAR_SEED = 0
COLUMNS = {"knn": "k-NN", "linear": "linear", "finetune": "fine-tune"}  # few-shot has one for each n


LINEAR_HEAD = "logistic regression on standardised features, C by the loss of held-out training data"
FEWSHOT_HEAD = "logistic regression on L2-normalised features"


def evaluate(
    encoders: Mapping[str, Encode | Pair],
    train: Any,
    test: Any,
    transform: Any,
    protocols: Sequence[str] = PROTOCOLS,
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
    """
    if not encoders or shots == () or not protocols or not set(protocols) <= set(PROTOCOLS):
        what = f"evaluate needs encoders, shots and protocols out of {', '.join(PROTOCOLS)}, got"
        raise ValueError(f"{what} {list(encoders)}, {shots} and {list(protocols)}")
    start = time.perf_counter()
    options = dict(batch_size=batch_size, device=device, precision=precision, workers=workers, progress=progress)
    pairs = _extracted(encoders, train, test, transform, options)
    labels = _same_labels(pairs)
    shots = shots or (shots_for(labels),)
    seconds = round(time.perf_counter() - start, 3)
    first, second = next(iter(pairs.values()))
    facts = {
        "train": _facts(first, train),
        "test": _facts(second, test),
        "classes": len(torch.unique(labels)),
        "precision": precision,  # of the network that gave the features
        "seconds": seconds,  # reading the data and encoding it, all encoders together
        **_settings(protocols, labels, shots, seeds),
    }
    # The fits run in float64, which Apple's GPUs do not have.
    heads = torch.device("cpu" if torch.device(device).type == "mps" else device)
    rows = []
    for name, (a, b) in pairs.items():
        x, y, queries, truth = (part.to(heads) for part in (*a.labelled(), *b.labelled()))
        rows.append({"features": name, **_row((x, y, queries, truth), protocols, shots, seeds)})
    return {"data": data, "protocol": facts, "rows": rows}


def table(result: Mapping[str, Any]) -> str:
    """The result of `evaluate` as plain text: top-1 in percent, and what it was measured on.

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
    text.append(f"top-1 in % on {result['data']}" + (f": {', '.join(notes)}" if notes else ""))
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
        if key in row and tested:
            cell += " ({:.1f}–{:.1f})".format(*(100 * end for end in wilson(row[key], tested)))
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
    check_classes(train.classes, test.classes, labels.tolist(), truth.tolist())
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
    settings = {
        "knn": {"head": "votes exp(cosine / T) of the k nearest", "k": min(HEADLINE, len(labels)), "T": TEMPERATURE},
        "linear": {"head": LINEAR_HEAD, "grid": list(GRID), "folds": FOLDS, "seed": LINEAR_SEED},
        "fewshot": {"head": FEWSHOT_HEAD, "C": C, "shots": list(shots), "seeds": list(range(seeds))},
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
    seconds = {}
    for protocol in protocols:
        start = time.perf_counter()
        if protocol == "knn":
            row["knn"], details["knn"] = _knn(data)
        elif protocol == "linear":
            details["linear"] = asdict(linear_probe(*data, seed=LINEAR_SEED))
            row["linear"] = details["linear"]["top1"]
        else:
            row["fewshot"], details["fewshot"] = _fewshot(data, shots, seeds)
        seconds[protocol] = round(time.perf_counter() - start, 3)
    return {**row, "details": details, "seconds": seconds}


def _knn(data: Data) -> tuple[float, dict[str, Any]]:
    x, y, queries, truth = data
    scores = {
        str(k): {"top1": top1(p, truth), "mean_per_class": mean_per_class(p, truth)}
        for k, p in knn(x, y, queries).items()
    }
    return scores[str(min(HEADLINE, len(x)))]["top1"], scores


def _fewshot(data: Data, shots: Sequence[int], seeds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = ("shots", "mean", "std", "interval", "accuracies")
    runs: dict[str, Any] = {}
    for head in HEADS:
        found = [fewshot(*data, shots=n, seeds=seeds, head=head) for n in shots]
        runs[head] = [{key: getattr(few, key) for key in keys} for few in found]
    first = runs["logistic"][0]
    return {key: first[key] for key in ("shots", "mean", "interval")}, runs
