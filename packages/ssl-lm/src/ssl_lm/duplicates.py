"""Groups of files that are nearly the same text, by MinHash (Broder, 1997). Imports no torch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_train.data.files import open_file

READ = 2**15
"""Bytes at the beginning of a file that are compared."""
WORDS = 5
"""Words that follow each other are compared together."""
BANDS, ROWS = 4, 4
"""Files are grouped if all ROWS hashes of one of the BANDS agree: of two files that share nine
tenths of their runs of words, 99 in 100 pairs are; of two that share three tenths, 3 in 100."""

_random = np.random.default_rng(0)
_FACTORS, _SHIFTS = _random.integers(0, 2**63, (2, BANDS * ROWS, 1), dtype=np.uint64) * 2 + 1


def near_duplicates(files: Sequence[Path]) -> list[list[Path]]:
    """The files in groups, each in the order of `files`; most groups have one file."""
    # every band leads to its group; a file with bands of several groups joins them
    groups: dict[bytes, list[Path]] = {}
    for file in files:
        bands = _bands(file)
        together = {id(group): group for group in (groups.get(band) for band in bands) if group}
        first, *others = together.values() or [[]]
        for other in others:
            first += other
            groups.update({band: first for band, group in groups.items() if group is other})
        first.append(file)
        groups.update(dict.fromkeys(bands, first))
    order = {file: i for i, file in enumerate(files)}
    unique = {id(group): sorted(group, key=order.__getitem__) for group in groups.values()}
    return sorted(unique.values(), key=lambda group: order[group[0]])


def _bands(file: Path) -> list[bytes]:
    """The bands of a file: its hashes that are smallest under each of the random functions."""
    with open_file(file) as stream:
        words = stream.read(READ).lower().split()
    words = np.array([zlib.crc32(word) for word in words] + [0] * (WORDS - len(words)), np.uint64)
    # the hash of every run of WORDS words, n
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(WORDS, dtype=np.uint64)
    runs = (np.lib.stride_tricks.sliding_window_view(words, WORDS) * powers).sum(axis=1, dtype=np.uint64)
    # the high bits of a product are the random ones
    least = ((runs * _FACTORS + _SHIFTS) >> np.uint64(16)).min(axis=1)  # bands * rows
    return [bytes([i]) + band.tobytes() for i, band in enumerate(least.reshape(BANDS, ROWS))]
