"""The command `predict`: the classes of pictures, by a fine-tuned network."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_core.device import pick_device
from ssl_core.errors import InputError
from ssl_core.hub.weights_file import write_whole
from ssl_core.method import Recipe
from ssl_train.classifier import Classifier, is_classifier
from ssl_train.data.files import printable

if TYPE_CHECKING:
    from ssl_train.cli.verbs import Predict


def run(recipe: Recipe, arguments: Predict, made: Path) -> None:
    """The command `predict`; `made` is where `evaluate` puts the fine-tuned network of a run."""
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and out.suffix not in (".csv", ".json"):
        raise InputError(f"--out {out}: the classes are written as .csv or .json")
    for name in arguments.pictures:
        if not Path(name).exists():
            raise InputError(f"{printable(name)}: no such file or folder")
    network = Classifier.from_pretrained(find(recipe, arguments.network, made), device=pick_device(arguments.device))
    options = {"batch_size": arguments.batch_size, "workers": arguments.workers, "progress": True}
    found = network.predict(arguments.pictures, **options)
    rows = list(zip(found.names, found.top(arguments.top), strict=True))
    width = max(len(printable(name)) for name in found.names)
    for name, row in rows:
        print(f"{printable(name).ljust(width)}  " + "  ".join(f"{label} {100 * p:.1f} %" for label, p in row))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, lambda beside: write_rows(beside, rows, as_json=out.suffix == ".json"))
        print(f"{len(rows)} pictures in {out}")


def find(recipe: Recipe, name: str, made: Path) -> str | Path:
    """The fine-tuned network that the user means by `name`: that of a run, a folder, a Hub id.

    Raises InputError if it is a run that has none.
    """
    if is_classifier(made):
        return made
    run = made.parent
    if run.is_dir() and not is_classifier(run) or "@" in name:
        program = recipe.package.replace("_", "-")
        what = f"{name} holds no fine-tuned network. This makes one:"
        command = f"{program} evaluate {shlex.quote(name)} --data LABELLED --protocols finetune"
        raise InputError(f"{what} {command}")
    return name


def write_rows(path: Path, rows: list[tuple[str, list[tuple[str, float]]]], *, as_json: bool) -> None:
    """A list of {"path", "classes": [{"class", "probability"}]}, or a CSV with a line for each
    picture and class."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        if as_json:
            named = [
                {"path": name, "classes": [{"class": label, "probability": p} for label, p in row]}
                for name, row in rows
            ]
            json.dump(named, file, indent=2, ensure_ascii=False)
            return
        table = csv.writer(file)
        table.writerow(["path", "rank", "class", "probability"])
        for name, row in rows:
            table.writerows([name, rank, label, f"{p:.6f}"] for rank, (label, p) in enumerate(row, 1))
