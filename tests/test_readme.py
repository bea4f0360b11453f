"""Run the snippets of every README and of the site, in order, in an empty folder.

CONTRIBUTING.md explains the marks in its section "Snippets".
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", ROOT / "shared-core" / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
PAGES = [*READMES, *sorted(ROOT.glob("docs/*.md"))]
# The mark is a comment on the line before the fence: both the site and GitHub then read the fence.
FENCE = re.compile(r"^(?:<!-- (?P<mark>\w+) -->\n)?```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def snippets(page: str) -> list[tuple[int, str, str]]:
    """(line, language, code) of what runs: `python` without norun, `bash` with run.

    Raises ValueError for an unknown mark, and for a fence that the site would not render: its info
    string is one word, the language.
    """
    found = []
    for fence in FENCE.finditer(page):
        language, mark = fence["info"], fence["mark"] or ""
        if not re.fullmatch(r"\w*", language):
            raise ValueError(f"the site does not render the fence `{language}`: CONTRIBUTING.md has the marks")
        if (language, mark) in {("python", ""), ("bash", "run")}:
            found.append((page.count("\n", 0, fence.start("code")) + 1, language, fence["code"]))
        elif mark and (language, mark) != ("python", "norun"):
            raise ValueError(f"a {language} snippet is marked `{mark}`: CONTRIBUTING.md has the marks")
    return found


def run(page: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Run a page's snippets in `folder`; returns how many. Python snippets share their names."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    todo = snippets(page.read_text())
    for line, language, code in todo:
        if language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True, timeout=600)
        else:
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    return len(todo)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page, monkeypatch, tmp_path):
    assert run(page, monkeypatch, tmp_path) > 0 or page not in READMES


MIXED = """
<!-- run -->
```bash
echo 3 > n.txt
```
```bash
false
```
```python
from pathlib import Path
n = int(Path("n.txt").read_text())
```
<!-- norun -->
```python
1 / 0
```
```python
Path("m.txt").write_text(str(n + 1))
```
"""


def test_marked_and_unmarked_snippets_are_told_apart(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(MIXED)
    assert run(page, monkeypatch, tmp_path) == 3
    assert (tmp_path / "m.txt").read_text() == "4"


@pytest.mark.parametrize(
    "snippet",
    [
        "```python\n1 / 0\n```\n",
        "<!-- run -->\n```bash\nfalse\n```\n",
        "<!-- rnu -->\n```bash\ntrue\n```\n",
        "<!-- norun -->\n```bash\ntrue\n```\n",
        "```bash run\ntrue\n```\n",
    ],
)
def test_a_broken_snippet_fails(snippet, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(snippet)
    with pytest.raises((ZeroDivisionError, subprocess.CalledProcessError, ValueError)):
        run(page, monkeypatch, tmp_path)
