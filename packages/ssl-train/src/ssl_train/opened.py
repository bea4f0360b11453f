"""What a command works on: a method, and the data as that method reads them."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_core.config import TrainConfig
from ssl_core.device import pick_device, pick_precision, seed_step
from ssl_core.errors import DataError, NoTestSplit
from ssl_core.method import Recipe, load
from ssl_train.asked import GIVEN, Asked
from ssl_train.auto import Choice, settled, starting_point
from ssl_train.cost import Cost, cost_of
from ssl_train.data.sources import Source, attach
from ssl_train.data.split import (
    FIFTH,
    By,
    Trained,
    divide,
    groups_of,
    has_labels,
    held_out,
    keys_of,
    taken,
    told_by,
    trained_on,
)  # fmt: skip
from ssl_train.processes import broadcast_object, by_main


def set_decoding(source: Source, config: Any) -> Source:
    """Make `source` decode images as the config says, and return it."""
    for part in (source, getattr(source, "source", None)):  # captions may come with a source of their own
        for name in ("max_pixels", "exact_decode"):
            if hasattr(part, name):
                setattr(part, name, getattr(config, name))
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
    `init` names the weights that training starts from. `held_out` is the share that is held out of
    data without a test part; None leaves it to `divide`. `group` is the column of a table whose
    equal cells stay on one side.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: Any,
        data: Any,
        test: Any = None,
        held_out: float | None = None,
        group: str | None = None,
    ) -> None:
        self.recipe, self.config, self.data, self.named_test = recipe, config, data, test
        self.place = data
        self.data_name = called(data)
        self.method: Any = None
        self.device = torch.device("cpu")
        self.init: str | Path | None = None
        self.choices: list[Choice] = []
        self.held_out, self.group = held_out, group
        self.division = ""  # how the data were divided, in words
        self.told_by: By = "name"
        self.weights: Trained | None = None  # what weights have seen that were given; of a training see `trained`
        self._raw: dict[str, Source] = {}
        self._keys: dict[str, np.ndarray] = {}

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
        held_out: float | None = None,
        group: str | None = None,
    ) -> Opened:
        """The training data, and the method with the weights that a run of this seed starts from.

        The method is on the CPU. Nothing is written but what the recipe makes of raw data in the
        run's folder `out`.

        What was asked becomes a config once the data are open; `choices` says how.
        """
        target = pick_device(device)
        place, rows = ready(recipe, data, out, config, init)
        if isinstance(config, Asked):
            opened = cls(recipe, starting_point(recipe, config, place), data, held_out=held_out, group=group)
            opened.place = place
            made = settled(recipe, config, opened.raw("train"), place, target)  # all ranks run the timed steps
            opened.config, choices = broadcast_object(made)
            rows = [*rows, *choices]
            if recipe.settle is not None:  # samples of text are as long as the chosen context
                opened._raw.clear()
        else:
            opened = cls(recipe, recipe.settled(config, place), data, held_out=held_out, group=group)
            opened.place = place
        opened.choices = rows
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
        held_out: float | None = None,
        group: str | None = None,
    ) -> Opened:
        """A method from its weights, on `device`, and the data that the user named.

        `max_pixels` replaces the config's. `as_trained` takes what the run made of the data, for no
        data at all too. With `held_out` = 0, data without a test part stay whole, even if they are
        those of the weights' run. `group` is by default the run's, of a table that has it. Raises
        DataError where no data are named and the run's own were an object in Python.
        """
        run = trained_on(weights)
        if data is None and run.data.endswith(GIVEN):
            what = f"{weights} was trained on data that a program gave ({run.data}): give them in Python, as in"
            raise DataError(f"{what} {recipe.package}.evaluate({weights!r}, data=…), or name other data with --data")
        target = pick_device(device)
        method = load(recipe.method).from_pretrained(weights, device=target)
        config = method.config
        if max_pixels is not None and hasattr(config, "max_pixels"):
            config = dataclasses.replace(config, max_pixels=max_pixels)
        opened = cls(recipe, config, data, test, held_out if test is None else 0.0, group)
        opened.place = ready(recipe, data, Path(weights))[0] if as_trained else data
        opened.method, opened.device, opened.weights = method, target, run
        return opened

    def raw(self, split: str) -> Source:
        """A split as the recipe opens it, before the method attaches to it: "train", "test", or the
        test data that the user "named". Raises NoTestSplit if there is none.

        The test split of undivided data is what is held out of them.
        """
        if split not in self._raw:
            data, name = (self.named_test, "train") if split == "named" else (self.place, split)
            try:
                source = load(self.recipe.source)(data, config=self.config, split=name)
            except NoTestSplit:
                self.raw("train")
                if split not in self._raw:
                    raise
                return self._raw[split]
            parts = {} if split == "named" else getattr(source, "parts", {})
            self._raw |= {**parts, split: source}
            for opened in self._raw.values():
                set_decoding(opened, self.config)
            self._set_groups(source)
            if split == "train" and getattr(source, "undivided", False):
                division = divide(source, self.held_out, self.weights)
                self.held_out, self.told_by, self.division = division.share, division.by, division.words
                self._raw |= division.parts
                self._keys |= division.keys
        return self._raw[split]

    def _set_groups(self, source: Any) -> None:
        """Give `source` its groups: raises DataError where a column was asked for and is not there,
        while other data than the run's need not have the run's column."""
        if self.group is not None:
            source.groups = groups_of(source, self.group)
        elif self.weights is not None and self.weights.group is not None:
            with suppress(DataError):
                source.groups = groups_of(source, self.weights.group)

    def keys(self, split: str) -> np.ndarray | None:
        """Keys of the samples of a split; None where samples have no content and no share is held
        out."""
        source = self.raw(split)
        if split not in self._keys and told_by(source) == "content":
            self.told_by = "content"
            self._keys[split] = keys_of(source, "content")
        return self._keys.get(split)

    @cached_property
    def trained(self) -> Trained:
        """What the weights have seen; of a training, what they have at its end."""
        if self.weights is not None:
            return self.weights
        train, start = self.raw("train"), self.init
        fingerprint, keys = train.fingerprint(), self.keys("train")
        if self.group is not None and keys is not None:
            keys = np.union1d(keys, train.groups)  # type: ignore[attr-defined]  # `_set_groups` has set them
        before = Trained() if start is None else trained_on(start)
        if keys is not None and before.keys is not None and before.by == self.told_by:
            keys, start = np.union1d(keys, before.keys), before.start
        start = None if start is None else str(start)
        return Trained(fingerprint, self.held_out, self.told_by, keys, start, self.data_name, self.group)

    @cached_property
    def cost(self) -> Cost:
        """What a training step costs here."""
        return cost_of(self.recipe, self.method, self.device)

    @cached_property
    def train(self) -> Source:
        return attach(self.method, self.raw("train"))

    @property
    def _test(self) -> str:
        return "test" if self.named_test is None else "named"

    @cached_property
    def test(self) -> Source | None:
        """The test data that the user named, else the test split, else None."""
        try:
            return attach(self.method, self.raw(self._test))
        except NoTestSplit:
            return None

    def seen(self, split: str) -> str:
        """How many samples a split has, and whether the run was trained on them, in words.

        Contents are compared where both sides have them, else fingerprints: then other data may
        still share pictures with the run's, and count as unknown.
        """
        run = self.trained
        if not run.fingerprint:
            return "unknown whether trained on: the weights do not say what they were trained on"
        samples, keys = len(self.raw(split)), self.keys(split)
        if keys is not None and run.keys is not None and run.by == self.told_by == "content":
            found, ours = int(np.isin(keys, run.keys).sum()), self.keys("train")
            own = ours is not None and run.knows(ours)
        else:
            same = {name for name in (split, "train") if self.raw(name).fingerprint() == run.fingerprint}
            if not same:
                return "unknown whether trained on: other data than the run was trained on"
            found, own = (samples if split in same or split == "probe" else 0), True
        number = f"{samples:,} sample{'s' * (samples != 1)}"
        if found:
            return f"{number}, {'all' if found == samples else f'{found:,}'} of them TRAINED ON"
        said = ", never trained on" if own else " of other data, with no copy of one that was trained on"
        return number + said + (", unless by the weights that it started from" if run.start else "")

    def shown(self) -> tuple[Source, str]:
        """(test data, or the training data if there are no other; which of them these are, and
        whether they were seen in training)."""
        if self.test is None:
            return self.train, f"all data, for there is no test split; {self.seen('train')}"
        return self.test, f"{self._own_split()}; {self.seen(self._test)}"

    def _own_split(self) -> str:
        if self.named_test is not None:
            return called(self.named_test)
        if not self.division:
            return "the data's own test split"
        group = self.group or self.trained.group
        return "what the run held out" + (f", by {group}" if group else "")

    def _shared(self) -> str:
        """How many groups have samples in both parts, in words; empty if none has, or there are no
        groups."""
        mine, theirs = (getattr(part, "groups", None) for part in (self.train, self.test))
        shared = 0 if mine is None or theirs is None else len(np.intersect1d(mine, theirs))
        return f"; {shared:,} groups of the test data are ON BOTH SIDES" if shared else ""

    def _copies(self) -> str:
        """How many test samples are copies of training samples, in words; nothing if none is."""
        ours, theirs = self.keys("train"), self.keys(self._test)
        if ours is None or theirs is None or not (found := int(np.isin(theirs, ours).sum())):
            return ""
        return f"; {found:,} of them COPIES of training samples, which raise every figure: remove them"

    def labelled(self) -> tuple[Source, Source, str]:
        """(training data, test data, how they were split and whether the test data were seen in
        training).

        Without test data a fifth is held out of the probes, the same for every method. Raises
        DataError if the data have no labels.
        """
        if not has_labels(self.train):
            what = f"{self.data_name} has no labels, and an evaluation needs them: one sub-folder per class,"
            raise DataError(f"{what} a CSV with a column 'label', or (picture, label) in Python")
        if self.test is not None:
            how = f"{self._own_split()}; {self.seen(self._test)}{self._copies()}{self._shared()}"
            return self.train, self.test, how
        whole, keys = self.raw("train"), self.keys("train")
        groups = getattr(whole, "groups", None)
        together = groups if groups is not None else keys_of(whole, "name") if keys is None else keys
        held = held_out(together, FIFTH, whole.labels)
        if not held.any():
            raise DataError(
                f"{self.data_name}: no class has two different samples, so none is left to test: give --test"
            )
        self._raw["probe"] = taken(whole, held)
        if keys is not None:
            self._keys["probe"] = keys[held]
        by = "" if groups is None else f" by {self.group or self.trained.group}"
        how = f"a fifth of the data{by}, the probes not fitted on it; {self.seen('probe')}"
        return taken(self.train, ~held), taken(self.train, held), how


def ready(recipe: Recipe, data: Any, folder: Path | None, *asked: Any) -> tuple[Any, list[Choice]]:
    """What the recipe makes of raw `data` in a run's folder, by `Recipe.ready`.

    The main process does it. Most recipes open data as they are.
    """
    if recipe.ready is None or folder is None:
        return data, []
    return by_main(lambda: load(recipe.ready or "")(data, folder, *asked))
