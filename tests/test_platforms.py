"""What Windows and macOS do differently, imitated on Linux.

`tools/windows.py` has the type checker read every package as Windows has it, in `tox -e types`.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from projects import projects

ROOT = Path(__file__).resolve().parents[1]
FILES = [*(path for project in projects(ROOT).values() for path in project.module.rglob("*.py"))]
FILES += [path for path in (ROOT / "tools").rglob("*.py")]
TEXT = {"read_text", "write_text", "open"}


def without_encoding(source: str) -> list[int]:
    """Lines on which a text file is read or written in the encoding of the system."""
    found = []
    for node in ast.walk(ast.parse(source)):
        called = node.func if isinstance(node, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
        if not isinstance(node, ast.Call) or name not in TEXT:
            continue
        of = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
        if name == "open" and (of in ("os", "gzip", "cls") or of[:1].isupper()):
            continue  # these open something else
        words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        named = {keyword.arg for keyword in node.keywords} >= {"encoding"} or "utf-8" in words
        binary = name == "open" and any("b" in word and set(word) <= set("rwaxb+") for word in words)
        if not named and not binary:
            found.append(node.lineno)
    return found


def test_calls_without_an_encoding_are_found():
    source = """
    path.read_text()
    path.write_text("x")
    path.open("a")
    open(path, "w")
    path.open()
    path.read_text("utf-8"), path.write_text("x", encoding="utf-8"), path.open("rb"), Image.open("a.png")
    os.open(path, os.O_RDONLY), path.open("w", encoding="utf-8")
    """
    assert without_encoding(inspect.cleandoc(source)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_utf8_on_every_system(path):
    # Windows would read and write them in its own code page
    assert without_encoding(path.read_text("utf-8")) == []
