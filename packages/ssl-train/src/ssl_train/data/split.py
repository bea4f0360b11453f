"""Training and test parts of data, each opened once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.errors import DataError, NoTestSplit
from ssl_core.method import Recipe, load
from ssl_train.data.listing import digest
from ssl_train.data.sources import Source, open_source


def attach(method: Any, source: Any) -> Any:
    """`source` as `method` reads it: its own `attach(source)` where it has one."""
    hook = getattr(method, "attach", None)
    return source if hook is None else hook(source)


def open_images(data: str | Path | None, *, config: Any, split: str = "train") -> Source:
    """`open_source` with the channels of an image method's config, and its size for rendered pictures."""
    return open_source(data, channels=config.in_channels, split=split, size=max(config.size))


class Opened:
    """The data of a command as its method reads them. Each part is opened once, when it is first asked for.

    `data` is what the user named, None the built-in data; `test` names test data that lie elsewhere.
    `method` attaches what it needs to the sources; it may be set after `raw` has opened them.
    """

    def __init__(
        self, recipe: Recipe, config: Any, data: str | Path | None, test: str | Path | None = None, method: Any = None
    ) -> None:
        self.recipe, self.config, self.data, self.named_test, self.method = recipe, config, data, test, method
        self._raw: dict[str, Source] = {}

    def raw(self, split: str) -> Source:
        """A split as the recipe opens it, whatever the method makes of it. Raises NoTestSplit if there is none."""
        if split not in self._raw:
            source = load(self.recipe.source)(self.data, config=self.config, split=split)
            self._raw |= {**getattr(source, "parts", {}), split: source}
        return self._raw[split]

    @cached_property
    def train(self) -> Source:
        return attach(self.method, self.raw("train"))

    @cached_property
    def test(self) -> Source | None:
        """The test data that the user named, else the test split, else None."""
        if self.named_test is not None:
            return attach(self.method, load(self.recipe.source)(self.named_test, config=self.config, split="train"))
        try:
            return attach(self.method, self.raw("test"))
        except NoTestSplit:
            return None

    def shown(self) -> tuple[Source, str]:
        """(test data, or the training data if there are no other; which of them these are)."""
        if self.test is None:
            return self.train, "TRAINING data, for there is no other"
        own = "the data's own test split"
        return self.test, own if self.named_test is None else f"test data: {self.named_test}"

    def labelled(self, seed: int = 0) -> tuple[Source, Source, str]:
        """(training data, test data, how they were split).

        Without test data a fifth of every class is held out, the same for every method. Raises
        DataError if the data have no labels.
        """
        if self.train.labels is None or not (self.train.labels >= 0).any():
            raise DataError(
                f"{self.data} has no labels, and an evaluation needs them: one sub-folder per class, "
                "or a CSV with a column 'label'"
            )
        if self.test is not None:
            own = "the data's own split"
            return self.train, self.test, own if self.named_test is None else f"test data: {self.named_test}"
        held = held_out(self.train.labels, 0.2, seed)
        kept = np.setdiff1d(np.arange(len(self.train)), held)
        return Subset(self.train, kept), Subset(self.train, held), "a fifth of every class held out"


class Subset:
    """Some samples of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> dict[str, Any]:
        return self.source.load(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return digest(self.source.fingerprint().encode(), self.indices)


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of `share` of every class, at least one sample of each class that has two or more.

    The draw is seeded per class. Samples without a label, -1, are never drawn.
    """
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * share)), len(members) - 1)
        chosen.append(np.random.default_rng((seed, int(label))).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))
