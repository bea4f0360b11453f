"""How far a reader walks from a command to a forward pass, by tools/walk.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from walk import WALKS, counts

ROOT = Path(__file__).resolve().parents[1]
MOST = {
    "ssl-mae train to the first forward pass": (26, 10),
    "ssl-mae train to the first step of the loop": (40, 42),
    "a file of a folder to the loss": (11, 5),
}
"""Files entered and returns to a file that was left before, at most."""


@pytest.mark.parametrize("name", MOST)
def test_a_walk_is_short(name, tmp_path):
    # In a process of its own, since a profiler in this one would follow pytest too.
    code = "import sys; from pathlib import Path; from walk import *; print(*counts(WALKS[sys.argv[1]](Path.cwd())))"
    path = [str(ROOT / "tools"), *sys.path]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    files, returns = map(int, done.stdout.split())
    assert files <= MOST[name][0] and returns <= MOST[name][1], (files, returns)


def test_every_walk_has_a_limit():
    assert WALKS.keys() == MOST.keys()


def test_an_entry_into_a_file_seen_before_is_a_return():
    assert counts([("a", "f"), ("b", "g"), ("a", "h")]) == (2, 1)
