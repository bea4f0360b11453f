"""The model card of a run folder: how to load it, how it was trained, and what was measured.

A card says only what the folder says: if a file is missing, its section is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from ssl_core.hub.card import OURS, write_card
from ssl_core.hub.format import SECTION
from ssl_core.hub.layout import Layout, read_json
from ssl_train.classifier import LAYOUT, is_classifier
from ssl_train.data.files import printable
from ssl_train.evaluate.accuracy import interval_of
from ssl_train.report.read import of_rows


def write_run_card(folder: str | Path, *, name: str, layout: Layout, **options: Any) -> Path:
    """`write_card` with what config.json and, where they exist, run.json, metrics.jsonl and
    evaluation.json say."""
    folder = Path(folder)
    run, evaluation, config = (
        read_json(file) if (file := folder / f"{part}.json").exists() else {}
        for part in ("run", "evaluation", "config")
    )
    is_text = layout.inputs[0] == "input_ids"
    task = "text-classification" if is_text else "image-classification"
    own, parts = config.get(SECTION, {}).get("config", {}), []
    if is_classifier(folder):  # trained by its protocol, on labels
        layout, parts = LAYOUT, [_predicting(name, config)]
        options |= {"pipeline_tag": task, **({"library_name": "timm"} if "architecture" in config else {})}
        own = evaluation.get("protocol", {}).get("finetune", {}).get("config", {})
    parts += [_evaluation(evaluation), _training(own, run, _last_metrics(folder / "metrics.jsonl"))]
    return write_card(folder, name=name, layout=layout, results=_results(evaluation, task), parts=parts, **options)


def _predicting(name: str, config: Mapping[str, Any]) -> str:
    """How to use a fine-tuned network for its classes."""
    method = config[SECTION]["config"]["method"]
    command = f"{method.partition('.')[0].replace('_', '-')} predict {name} photos/"
    timm = f'timm.create_model("hf-hub:{name}", pretrained=True)  # timm opens it too\n'
    code = f'model.predict("photos/")  # on the command line: {command}\n{timm if "architecture" in config else ""}'
    classes = f"The encoder is that of `{method}`. Classes: {', '.join(map(printable, config['label_names']))}."
    return f"## Classify\n\n```python\n{code}```\n\n{classes}"


def _results(evaluation: Mapping[str, Any], task: str) -> list[Any]:
    """The figures of the pretrained features, for the card's model-index."""
    from huggingface_hub import EvalResult

    data, tested = _public(evaluation.get("data", "unnamed")), _count(evaluation, "test")
    what = {"task_type": task, "dataset_type": data, "dataset_name": data, "metric_type": "accuracy"}
    if "findings" in evaluation.get("protocol", {}):
        what["metric_type"] = "roc_auc"
    found = []
    for row in (row for row in evaluation.get("rows", []) if row.get("features") == "pretrained"):
        for title, value, spread in _figures(row, evaluation):
            known = {"by": OURS, "n": tested, "interval in %": spread}
            facts = {key: fact for key, fact in known.items() if fact}
            found.append(EvalResult(**what, metric_name=title, metric_value=round(value, 4), metric_args=facts))
    return found


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    """A table of every row, in percent, and on how many samples."""
    rows = {row["features"]: _figures(row, evaluation) for row in evaluation.get("rows", [])}
    titles = list(dict.fromkeys(title for figures in rows.values() for title, _, _ in figures))
    if not titles:
        return ""
    lines = ["| features | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * len(titles)]
    for features, figures in rows.items():
        cells = {title: f"{100 * value:.1f} {spread}".strip() for title, value, spread in figures}
        lines.append(" | ".join([f"| {features}", *(cells.get(t, "") for t in titles), ""]).strip())
    counts = [f"{part} n = {n:,}" for part in ("train", "test") if (n := _count(evaluation, part))]
    data = _public(evaluation.get("data", "unnamed data"))
    metric = "Mean AUROC of the findings" if "findings" in evaluation.get("protocol", {}) else "Top-1"
    note = f"{metric} in %, 95 % intervals, on {data}: {', '.join(counts) or 'n was not recorded'}."
    if isinstance(split := evaluation.get("protocol", {}).get("split"), str):
        note += f" The test data are {_public(split)}."
    more = [f"| {' | '.join(cells)} |" for cells in of_rows(dict(evaluation))]
    if more:
        more.insert(1, "| --- |" + " ---: |" * (more[0].count(" | ")))
        more = ["", "Of the linear probe, and of k-NN where it says so, in %:", "", *more]
    return "\n".join(["## Evaluation", "", *lines, "", note, *more])


def _figures(row: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """(title, share, interval in percent) of each figure of a row."""
    neighbours = evaluation.get("protocol", {}).get("knn", {})
    k = f" (k = {neighbours['k']})" if isinstance(neighbours, dict) and "k" in neighbours else ""
    tested = _count(evaluation, "test")
    figures = []
    for key, title in (("knn", f"k-NN{k}"), ("linear", "linear probe"), ("finetune", "fine-tuned")):
        if isinstance(row.get(key), int | float):
            ends = interval_of(row, key, tested or 0)
            figures.append((title, float(row[key]), "({:.1f}–{:.1f})".format(*(100 * e for e in ends)) if ends else ""))
    few = row.get("fewshot")
    if isinstance(few, dict) and "mean" in few:
        spread = f"± {100 * few['interval']:.1f}" if few.get("interval") is not None else ""
        figures.append((f"{few.get('shots', 'few')}-shot", float(few["mean"]), spread))
    return figures


def _count(evaluation: Mapping[str, Any], part: str) -> int | None:
    """Number of samples of the "train" or "test" part, where the protocol says it."""
    facts = evaluation.get("protocol", {}).get(part)
    return facts.get("n") if isinstance(facts, dict) else facts if isinstance(facts, int) else None


def _training(config: Mapping[str, Any], run: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    scalars = {key: value for key, value in last.items() if isinstance(value, int | float)}
    facts = {
        "data": _public(run.get("data")),
        "fingerprint of the data": run.get("data_fingerprint"),
        "started from": _public(run.get("init")),
        "versions": ", ".join(f"{name} {v}" for name, v in run.get("versions", {}).items()),
        "last metrics": ", ".join(f"{key} {value:.5g}" for key, value in scalars.items()),
    }
    lines = [f"- {title}: {value}" for title, value in facts.items() if value]
    if config:
        lines += ["", "| setting | value |", "| --- | --- |"]
    for key, value in config.items():
        cell = json.dumps(_public(value), ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| {key} | {cell} |")
    return "\n".join(["## Training", "", *lines]) if lines else ""


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last value of every scalar in metrics.jsonl; {} if there is no such file."""
    last: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            last |= json.loads(line)
        except ValueError:  # torn by a kill
            continue
    return last


def _public(value: Any) -> Any:
    """A path without its folders, which are private; anything else unchanged."""
    if isinstance(value, str) and (value.startswith(("/", "~", ".")) or PureWindowsPath(value).drive):
        return PureWindowsPath(value).name
    return value
