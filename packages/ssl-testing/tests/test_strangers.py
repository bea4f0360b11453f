"""The strangers' folders hold what their table says."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

from PIL import Image

from ssl_testing.strangers import LARGE, STRANGERS, Stranger, write_strangers


def test_every_pair_of_two_properties_is_in_some_folder():
    rows = [(s.number, s.sides, s.kind, min(s.classes, 2)) for s in STRANGERS.values()]
    for i, j in combinations(range(4), 2):
        pairs = {(row[i], row[j]) for row in rows}
        assert pairs == {*product({row[i] for row in rows}, {row[j] for row in rows})}


def test_a_folder_has_the_kinds_sizes_and_classes_that_were_asked_for(tmp_path):
    write_strangers(tmp_path / "mixed", Stranger(20, LARGE, "mixed", 3))
    write_strangers(tmp_path / "deep", Stranger(3, (16, 31), "I;16", 0))
    found = [read(file) for file in (tmp_path / "mixed").glob("class */*")]
    assert len(found) == 20 and {mode for mode, _, _ in found} == {"RGB", "L", "RGBA", "P", "1", "CMYK"}
    assert {(3000, 2000), (3000, 16)} <= {size for _, size, _ in found}
    deep = [read(file) for file in (tmp_path / "deep").glob("*.png")]
    assert {mode for mode, _, _ in deep} == {"I;16"} and max(high for _, _, high in deep) > 255


def read(file: Path) -> tuple[str, tuple[int, int], int]:
    """(mode, size, highest value of a picture of one channel, else 0)."""
    with Image.open(file) as picture:
        extrema = picture.getextrema()
        return picture.mode, picture.size, int(extrema[1]) if len(picture.getbands()) == 1 else 0
