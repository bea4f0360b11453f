"""Model cards: README.md from what a run recorded, merged with what people wrote into it.

A card says nothing that is not in the folder: pieces that are missing there are left out. What this
file writes stands between two marks, so that a later card can replace it and leave the rest of the
page alone.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from ssl_core.errors import InputError
from ssl_core.hub.layout import Layout, read_json
from ssl_core.hub.weights_file import write_whole

BEGIN = "<!-- ssl-core: written from the run; what you change before the end mark is lost -->"
END = "<!-- ssl-core: end -->"
BLOCK = re.compile(r"<!-- ssl-core: written.*?<!-- ssl-core: end -->", re.DOTALL)
OURS = "ssl-core"  # "by" in a metric's arguments: the entries of a model-index that we replace


class CardError(InputError, ValueError):
    """A README.md whose YAML header cannot be read."""


def write_card(
    folder: str | Path,
    *,
    name: str,
    layout: Layout,
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> Path:
    """Write `folder/README.md` from config.json and, where they exist, run.json, metrics.jsonl and
    evaluation.json.

    `name` is the Hub id under which the model will be found, `layout` the method's; `base_model` and
    `datasets` are Hub ids of what it was made from. `license` is that of the weights, and weights that go on from
    CC-BY-NC ones are CC-BY-NC; by default it stays what the README.md says, Apache-2.0 when there
    is none. Text that people added outside the marks of the README.md stays.
    Raises CardError for a README.md that cannot be merged, OSError and ValueError for files that
    cannot be read.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    run, evaluation = (
        read_json(file) if file.exists() else {} for file in (folder / "run.json", folder / "evaluation.json")
    )
    path = folder / "README.md"
    old = _parse(path.read_bytes().decode("utf-8-sig")) if path.exists() else None
    own = config.get("ssl", {})
    package = str(own.get("method", "")).partition(".")[0].replace("_", "-")
    model_type = str(config.get("model_type"))
    pipeline = layout.pipelines.get(model_type)
    header = _header(
        evaluation,
        text=layout.inputs[0] == "input_ids",
        base_model=base_model,
        datasets=list(datasets) or None,
        library_name="transformers" if pipeline else package or None,
        license=license or (old and old.data.get("license")) or "apache-2.0",
        model_name=name.rsplit("/", 1)[-1],
        pipeline_tag=pipeline,
        tags=[tag for tag in ("self-supervised-learning", package, *tags) if tag],
    )
    parts = [
        _loading(name, own.get("method"), layout.inputs, model_type if pipeline else None),
        _evaluation(evaluation),
        _training(own.get("config", {}), run, _last_metrics(folder / "metrics.jsonl")),
    ]
    block = "\n\n".join([BEGIN, *(part for part in parts if part), END])
    card = f"---\n{header}\n---\n\n# {name.rsplit('/', 1)[-1]}\n\n{block}\n"
    if old is not None:
        card = _merge(old, _parse(card))
    write_whole(path, lambda temporary: temporary.write_bytes(card.encode()))
    return path


def merge_card(old: str, new: str) -> str:
    """The card `old` with the marked block and the figures of `new`; everything else in it stays.

    Of the YAML header, our keys are renewed, tags and datasets united, other keys and other
    people's entries of the model-index kept. So is the licence, with a warning when the two differ:
    whoever put it there may have had a reason. Merging the same card again changes nothing.
    Raises CardError when a header cannot be read.
    """
    theirs, ours = _parse(old), _parse(new)
    kept, offered = theirs.data.get("license"), ours.data.get("license")
    if kept and offered and kept != offered:
        warnings.warn(
            f"the card there says licence {kept}, the new one {offered}: {kept} is kept. "
            "Edit the card there if that is wrong",
            stacklevel=2,
        )
        ours.data.license = kept
    return _merge(theirs, ours)


def _merge(theirs: Any, ours: Any) -> str:
    """`ours` into `theirs`, two ModelCards."""
    for key, value in ours.data.to_dict().items():
        if key in ("tags", "datasets"):
            before = theirs.data.get(key, [])
            before = [before] if isinstance(before, str) else before
            value = list(dict.fromkeys([*before, *value]))
        if key != "model-index":
            theirs.data[key] = value
    results = theirs.data.get("eval_results", [])
    others = [result for result in results if (result.metric_args or {}).get("by") != OURS]
    theirs.data.eval_results = [*others, *ours.data.get("eval_results", [])] or None
    if theirs.data.eval_results and not theirs.data.get("model_name"):
        theirs.data.model_name = ours.data.model_name
    theirs.text = _merge_text(theirs.text, ours.text)
    return str(theirs)


def _merge_text(old: str, new: str) -> str:
    block = BLOCK.search(new)
    own = [line for line in BLOCK.sub("", new).splitlines() if line.strip() and not line.startswith("# ")]
    lost = [line for line in own if line not in old]
    if lost:
        warnings.warn(
            f"the card there keeps its text; {len(lost)} lines outside the marks of the new one "
            f"are left out: {lost[0]!r}",
            stacklevel=3,
        )
    if block is None:
        return old
    end = "\r\n" if "\r\n" in old else "\n"
    text = block[0].replace("\n", end)
    if BLOCK.search(old):
        return BLOCK.sub(lambda _: text, old, count=1)
    return f"{old.rstrip()}{end}{end}{text}{end}"


def _parse(card: str) -> Any:
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        return ModelCard(card)
    except (ValueError, YAMLError) as error:
        raise CardError(f"the header of README.md cannot be read, mend its YAML: {error}") from error


def _header(evaluation: Mapping[str, Any], *, text: bool, model_name: str, **values: Any) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data = _public(evaluation.get("data", "unnamed"))
    tested = _count(evaluation, "test")
    results = [
        EvalResult(
            task_type="text-classification" if text else "image-classification",
            dataset_type=data,
            dataset_name=data,
            metric_type="accuracy",
            metric_name=title,
            metric_value=round(value, 4),
            metric_args={
                "by": OURS,
                **({"n": tested} if tested else {}),
                **({"interval in %": spread} if spread else {}),
            },
        )
        for row in evaluation.get("rows", [])
        if row.get("features") == "pretrained"
        for title, value, spread in _figures(row, evaluation)
    ]
    if results:
        values |= {"model_name": model_name, "eval_results": results}
    return ModelCardData(**values).to_yaml()


def _loading(name: str, method: str | None, inputs: tuple[str, str], model_type: str | None) -> str:
    """How to load it, in three lines, and by transformers where it reads this `model_type`."""
    parts = []
    if method:
        module, _, cls = method.partition(":")
        parts.append(
            "```python\n"
            f"from {module} import {cls}\n"
            f'model = {cls}.from_pretrained("{name}")\n'
            f"features = model.encode({inputs[0]})  # {inputs[1]} -> (b, d)\n"
            "```"
        )
    if model_type:
        call = f'`AutoModel.from_pretrained("{name}")`'
        parts.append(f"transformers reads it too: {call}, model type `{model_type}`.")
    return "\n\n".join(["## Load", *parts]) if parts else ""


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
    note = f"Top-1 in %, 95 % intervals, on {data}: {', '.join(counts) or 'n was not recorded'}."
    return "\n".join(["## Evaluation", "", *lines, "", note])


def _figures(row: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """(title, share, interval in percent) of each figure of a row."""
    neighbours = evaluation.get("protocol", {}).get("knn", {})
    k = f" (k = {neighbours['k']})" if isinstance(neighbours, dict) and "k" in neighbours else ""
    tested = _count(evaluation, "test")
    figures = []
    for key, title in (("knn", f"k-NN{k}"), ("linear", "linear probe")):
        if isinstance(row.get(key), int | float):
            figures.append((title, float(row[key]), _wilson(row[key], tested) if tested else ""))
    few = row.get("fewshot")
    if isinstance(few, dict) and "mean" in few:
        spread = f"± {100 * few['interval']:.1f}" if few.get("interval") is not None else ""
        figures.append((f"{few.get('shots', 'few')}-shot", float(few["mean"]), spread))
    return figures


def _wilson(share: float, n: int, z: float = 1.96) -> str:
    """95 % interval of a share of n samples, in percent (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return f"({100 * max(0.0, centre - half):.1f}–{100 * min(1.0, centre + half):.1f})"


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
    """The last value of every scalar in metrics.jsonl; empty when there is none."""
    last: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            last |= json.loads(line)
        except ValueError:  # torn by a kill
            continue
    return last


def _public(value: Any) -> Any:
    """A path without its folders, which are nobody's business; anything else as it is."""
    if isinstance(value, str) and (value.startswith(("/", "~", ".")) or PureWindowsPath(value).drive):
        return PureWindowsPath(value).name
    return value
