"""Lines of code of each distribution, and comments per line of code.

    python tools/lines.py            one row per distribution
    python tools/lines.py ssl-mae    one row per file of the distributions named

A line of code is neither blank, nor only a comment, nor part of a docstring. Strings below a field
or a constant, which document it, count as docstrings.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from projects import ROOT, projects

LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
"""Tokens that make no line a line of code."""


class Count(NamedTuple):
    code: int
    comments: int
    """comments, on lines of their own or behind code"""

    @property
    def density(self) -> float:
        """Comments per line of code."""
        return self.comments / max(1, self.code)


def count(text: str) -> Count:
    """Count one source file. Raises SyntaxError if `text` is not Python."""
    lines: set[int] = set()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comments += token.type == tokenize.COMMENT
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for string in documentation(ast.parse(text)):
        lines.difference_update(range(string.lineno, (string.end_lineno or string.lineno) + 1))
    return Count(len(lines), comments)


def documentation(tree: ast.AST) -> Iterable[ast.Expr]:
    """Strings that are statements: docstrings, and strings below a field or a constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node


def total(counts: Iterable[Count]) -> Count:
    """The sum of several counts."""
    pairs = list(counts)
    return Count(sum(c.code for c in pairs), sum(c.comments for c in pairs))


def files(name: str) -> dict[Path, Count]:
    """Source file of a distribution -> its count."""
    source = projects()[name].folder / "src"
    return {path.relative_to(ROOT): count(path.read_text("utf-8")) for path in sorted(source.rglob("*.py"))}


def main() -> None:
    """Print the table."""
    counts = {name: files(name) for name in projects()}
    for name, per_file in counts.items():
        rows = {name: total(per_file.values())}
        if name in sys.argv[1:]:
            rows |= {f"  {path}": found for path, found in per_file.items()}
        for row, found in rows.items():
            print(f"{found.code:6,}  {found.density:5.2f}  {row}")
    everything = total(found for per_file in counts.values() for found in per_file.values())
    print(f"{everything.code:6,}  {everything.density:5.2f}  all")


if __name__ == "__main__":
    main()
