"""Limits on lines of code, on missing comments, and on formatting that is switched off."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lines import Count, count, files, total
from projects import methods, paper_modules, projects

ROOT = Path(__file__).resolve().parents[1]
MOST = {"ssl-core": 2300, "ssl-train": 7560, "ssl-testing": 1550}
"""Lines of code of the shared distributions; docs/decisions.md#size-limits names the features that
raised them."""
MOST_OF_ALL = 20_870
METHODS = methods(ROOT)

EXAMPLE = '''"""Module docstring,
of two lines."""

# a comment
WIDTH = 3  # another
"""what it is"""


def f(
    x,
):
    """Docstring."""
    text = """a string
    that is code"""
    return x, text
'''


def test_blank_lines_comments_and_docstrings_are_no_code():
    assert count(EXAMPLE) == Count(code=7, comments=2)


@pytest.mark.parametrize("name", MOST)
def test_a_shared_distribution_stays_small(name):
    assert total(files(name).values()).code <= MOST[name]


def test_all_source_together_stays_small():
    assert total(found for name in projects(ROOT) for found in files(name).values()).code <= MOST_OF_ALL


def test_methods_are_commented():
    found = total(found for name in METHODS for found in files(name).values())
    assert found.density >= 0.07, found


@pytest.mark.parametrize("name", METHODS)
def test_a_papers_file_has_a_comment_to_ten_lines_of_code(name):
    papers = {module.rpartition(".")[2] for module in paper_modules(METHODS[name])}
    found = {path.name: counted for path, counted in files(name).items() if path.stem in papers}
    assert {file: counted for file, counted in found.items() if counted.density < 0.1} == {}


def test_formatting_is_rarely_switched_off():
    mark = "# fmt: " + "skip"
    listed = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(path.read_text().count(mark) for path in paths if path.exists()) <= 80
