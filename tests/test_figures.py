"""Figures that a page repeats are those of the sections of docs/benchmarks.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUMMARY, SECTIONS = (ROOT / "docs" / "benchmarks.md").read_text().split("\n## Terms and conditions\n")
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/which-method.md")} | {"summary": SUMMARY}


def figures(text: str) -> set[str]:
    """What looks like a measurement: 61.2 ± 0.7, or 1.29 [1.24–1.33]."""
    return set(re.findall(r"\d+\.\d+ ± \d+\.\d+|\d+\.\d+ \[\d+\.\d+–\d+\.\d+\]", text))


@pytest.mark.parametrize("page", PAGES)
def test_repeated_figures_are_the_measured_ones(page):
    assert len(figures(PAGES[page])) > 10
    assert not figures(PAGES[page]) - figures(SECTIONS)


def test_a_changed_figure_is_seen():
    assert figures(SUMMARY.replace("61.2 ± 0.7", "61.9 ± 0.7")) - figures(SECTIONS) == {"61.9 ± 0.7"}
