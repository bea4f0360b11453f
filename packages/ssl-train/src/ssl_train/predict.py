"""The command `predict`: the classes of pictures, by a fine-tuned network."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.device import pick_device
from ssl_core.errors import InputError
from ssl_core.hub.weights_file import write_whole
from ssl_core.method import Recipe, load
from ssl_train.classifier import Classifier, check_encoder, is_classifier
from ssl_train.data.files import printable
from ssl_train.log import typed

if TYPE_CHECKING:
    from ssl_train.cli.verbs import Predict


def run(recipe: Recipe, arguments: Predict, made: Path, *, program: str) -> dict[str, Any]:
    """The command `predict` of `program`.

    `made` is where `evaluate` puts the fine-tuned network of a run.
    """
    for name in arguments.pictures:
        if not Path(name).exists():
            raise InputError(f"{printable(name)}: no such file or folder")
    network = Classifier.from_pretrained(
        find(recipe, arguments.network, made, program), device=pick_device(arguments.device)
    )
    options = {"batch_size": arguments.batch_size, "workers": arguments.workers, "progress": True}
    found = network.predict(arguments.pictures, top=arguments.top, max_pixels=arguments.max_pixels, **options)
    width = max(len(printable(name)) for name in found)
    for name, row in found.items():
        print(printable(name).ljust(width), *(f" {printable(label)} {100 * p:.1f} %" for label, p in row))
    if arguments.out is not None:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(arguments.out), lambda beside: write_csv(beside, found))
        print(f"{len(found)} pictures in {arguments.out}")
    return {"pictures": {name: dict(row) for name, row in found.items()}, "file": arguments.out}


def find(recipe: Recipe, name: str, made: Path, program: str) -> str | Path:
    """The fine-tuned network that the user means by `name`: that of a run, a folder, a Hub id.

    Raises InputError if it is a run that has none, and says what makes one, if anything does.
    """
    if is_classifier(made):
        return made
    if made.parent != Path(name) or (made.parent.is_dir() and not is_classifier(name)):
        check_encoder(load(recipe.method).sketched(name))
        command = typed(program, "evaluate", name, "--data", "LABELLED", "--protocols", "finetune")
        raise InputError(f"{name} holds no fine-tuned network. This makes one: {command}")
    return name


def write_csv(path: Path, found: dict[str, list[tuple[str, float]]]) -> None:
    """A line for each picture and class."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "rank", "class", "probability"])
        for name, row in found.items():
            table.writerows([name, rank, label, f"{p:.6f}"] for rank, (label, p) in enumerate(row, 1))
