"""Which samples of a source are looked at, where a few have to stand for all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ssl_core.errors import BadSample, DataError


def readable(source: Any, count: int) -> Iterator[tuple[int, Any]]:
    """(index, sample) of the first `count` readable samples of a fixed shuffle of a source, of
    fewer where it has fewer.

    Raises DataError when none is readable.
    """
    found = 0
    for index in np.random.default_rng(0).permutation(len(source)).tolist():
        try:
            sample = source.load(index)
        except BadSample:
            continue
        yield index, sample
        found += 1
        if found == count:
            return
    if not found:
        raise DataError(f"none of the {len(source):,} samples is readable")
