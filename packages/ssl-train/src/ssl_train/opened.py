"""What a command works on: a method, and the data as that method reads them."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_core.config import TrainConfig
from ssl_core.device import pick_device, pick_precision, seed_step
from ssl_core.errors import DataError, NoTestSplit
from ssl_core.hub.checkpoint import checkpoint_of
from ssl_core.method import Recipe, load
from ssl_train.asked import GIVEN, Asked
from ssl_train.auto import Choice, settled, starting_point
from ssl_train.cost import Cost, cost_of
from ssl_train.data.sources import Source, attach
from ssl_train.data.split import Subset, held_out
from ssl_train.processes import broadcast_object, by_main


def limit_pixels(source: Source, config: Any) -> Source:
    """Make `source` leave out images of more pixels than the config allows, and return it."""
    for part in (source, getattr(source, "source", None)):  # captions may come with a source of their own
        if hasattr(part, "max_pixels"):
            part.max_pixels = config.max_pixels  # type: ignore[union-attr]
    return source


def called(data: Any) -> str:
    """What run.json and messages call the data."""
    if data is None or isinstance(data, str | os.PathLike):
        return "built-in" if data is None else str(data)
    return type(data).__name__ + GIVEN


class Opened:
    """A method, built once, and its data. Each part of the data is opened once, on first use.

    `data` is what the user named or gave as an object, None the built-in data. `place` is what is
    opened for it, which a recipe may have made of it. `test` names test data that lie elsewhere.
    `init` names the weights that training starts from.
    """

    def __init__(self, recipe: Recipe, config: Any, data: Any, test: Any = None) -> None:
        self.recipe, self.config, self.data, self.named_test = recipe, config, data, test
        self.place = data
        self.data_name = called(data)
        self.method: Any = None
        self.device = torch.device("cpu")
        self.init: str | Path | None = None
        self.choices: list[Choice] = []
        self.trained_on: str | None = None  # fingerprint of the run's training data, where it is known
        self._raw: dict[str, Source] = {}

    @classmethod
    def to_train(
        cls,
        recipe: Recipe,
        config: TrainConfig | Asked,
        *,
        data: Any,
        init: str | Path | None = None,
        device: str | None = None,
        out: Path | None = None,
    ) -> Opened:
        """The training data, and the method with the weights that a run of this seed starts from.

        The method is on the CPU. Nothing is written but what the recipe makes of raw data in the
        run's folder `out`.

        What was asked becomes a config once the data are open; `choices` says how.
        """
        target = pick_device(device)
        place, rows = ready(recipe, data, out, config, init)
        if isinstance(config, Asked):
            opened = cls(recipe, starting_point(recipe, config, place), data)
            opened.place = place
            made = settled(recipe, config, opened.raw("train"), place, target)  # all ranks run the timed steps
            opened.config, choices = broadcast_object(made)
            rows = [*rows, *choices]
            if recipe.settle is not None:  # samples of text are as long as the chosen context
                opened._raw.clear()
        else:
            opened = cls(recipe, recipe.settled(config, place), data)
            opened.place = place
        opened.choices = rows
        opened.trained_on = opened.raw("train").fingerprint()
        opened.device, opened.init = target, init
        precision: Any = pick_precision(opened.config.precision, target)
        opened.config = dataclasses.replace(opened.config, precision=precision)
        seed_step(opened.config.seed)
        build = load(recipe.method)
        opened.method = build.from_pretrained(init, config=opened.config) if init else build(opened.config)
        return opened

    @classmethod
    def from_weights(
        cls,
        recipe: Recipe,
        weights: str,
        *,
        data: Any,
        test: Any = None,
        device: str | None = None,
        max_pixels: int | None = None,
        as_trained: bool = False,
    ) -> Opened:
        """A method from its weights, on `device`, and the data that the user named.

        `max_pixels` replaces the config's. `as_trained` takes what the run made of the data, for no
        data at all too. Raises DataError where no data are named and the run's own were an object
        in Python.
        """
        step = checkpoint_of(weights)
        fingerprint, init, trained_on = _of_run(Path(weights) if step is None else step.parents[1])
        if data is None and trained_on.endswith(GIVEN):
            what = f"{weights} was trained on data that a program gave ({trained_on}): give them in Python, as in"
            raise DataError(f"{what} {recipe.package}.evaluate({weights!r}, data=…), or name other data with --data")
        target = pick_device(device)
        method = load(recipe.method).from_pretrained(weights, device=target)
        config = method.config
        if max_pixels is not None and hasattr(config, "max_pixels"):
            config = dataclasses.replace(config, max_pixels=max_pixels)
        opened = cls(recipe, config, data, test)
        opened.place = ready(recipe, data, Path(weights))[0] if as_trained else data
        opened.method, opened.device = method, target
        opened.trained_on, opened.init = fingerprint, init
        return opened

    def raw(self, split: str) -> Source:
        """A split as the recipe opens it, before the method attaches to it. Raises NoTestSplit if
        there is none."""
        if split not in self._raw:
            source = load(self.recipe.source)(self.place, config=self.config, split=split)
            self._raw |= {**getattr(source, "parts", {}), split: source}
            for part in self._raw.values():
                limit_pixels(part, self.config)
        return self._raw[split]

    @cached_property
    def cost(self) -> Cost:
        """What a training step costs here."""
        return cost_of(self.recipe, self.method, self.device)

    @cached_property
    def train(self) -> Source:
        return attach(self.method, self.raw("train"))

    @cached_property
    def test(self) -> Source | None:
        """The test data that the user named, else the test split, else None."""
        if self.named_test is not None:
            source = load(self.recipe.source)(self.named_test, config=self.config, split="train")
            return attach(self.method, limit_pixels(source, self.config))
        try:
            return attach(self.method, self.raw("test"))
        except NoTestSplit:
            return None

    def seen(self, test: bool) -> str:
        """Whether the run was trained on these data, in words, by the fingerprints of both.

        "These" are the test data if `test`, else the data without a test split. Data with another
        fingerprint may still share pictures with the run's data, so they count as unknown.
        """
        if self.trained_on is None:
            return "unknown whether seen in training: the weights do not say what they were trained on"
        if test and self.test is not None and self._fingerprint_of_test() == self.trained_on:
            return "SEEN IN TRAINING"
        if self.raw("train").fingerprint() != self.trained_on:
            return "unknown whether seen in training: other data than the run was trained on"
        if not test or self.test is None:
            return "SEEN IN TRAINING"
        return "not seen in training" + (", unless by the weights that it started from" if self.init else "")

    def shown(self) -> tuple[Source, str]:
        """(test data, or the training data if there are no other; which of them these are, and
        whether they were seen in training)."""
        if self.test is None:
            return self.train, f"all data, for there is no test split; {self.seen(False)}"
        return self.test, f"{self._own_split()}; {self.seen(True)}"

    def _own_split(self) -> str:
        return "the data's own test split" if self.named_test is None else f"test data: {called(self.named_test)}"

    def _fingerprint_of_test(self) -> str:
        """As runs note it: before the method attaches to the data."""
        if self.named_test is None:
            return self.raw("test").fingerprint()
        return load(self.recipe.source)(self.named_test, config=self.config, split="train").fingerprint()

    def labelled(self, seed: int = 0) -> tuple[Source, Source, str]:
        """(training data, test data, how they were split and whether the test data were seen in
        training).

        Without test data a fifth of every class is held out, the same for every method. Raises
        DataError if the data have no labels.
        """
        if self.train.labels is None or not (self.train.labels >= 0).any():
            what = f"{self.data_name} has no labels, and an evaluation needs them: one sub-folder per class,"
            raise DataError(f"{what} a CSV with a column 'label', or (picture, label) in Python")
        if self.test is not None:
            return self.train, self.test, f"{self._own_split()}; {self.seen(True)}"
        held = held_out(self.train.labels, 0.2, seed)
        kept = np.setdiff1d(np.arange(len(self.train)), held)
        how = f"a fifth of every class, the probes not fitted on it; {self.seen(False)}"
        return Subset(self.train, kept), Subset(self.train, held), how


def ready(recipe: Recipe, data: Any, folder: Path | None, *asked: Any) -> tuple[Any, list[Choice]]:
    """What the recipe makes of raw `data` in a run's folder, by `Recipe.ready`.

    The main process does it. Most recipes open data as they are.
    """
    if recipe.ready is None or folder is None:
        return data, []
    return by_main(lambda: load(recipe.ready or "")(data, folder, *asked))


def _of_run(folder: Path) -> tuple[str | None, str | None, str]:
    """(fingerprint of the training data, weights it started from, name of the data) of a run
    folder; None or "" for what run.json does not say."""
    try:
        run = json.loads((folder / "run.json").read_text())
        return run.get("data_fingerprint"), run.get("init"), str(run.get("data", ""))
    except (OSError, ValueError, AttributeError):  # a Hub id, a file, a damaged record: not known
        return None, None, ""
