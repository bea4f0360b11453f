"""The notebooks: without outputs, and their cells run in one process on tiny settings."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from ssl_train.data.scenes import write_folder

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
TINY = {
    "first-run": {"DATA": "./few", "STEPS": 3},
    "your-images": {"PHOTOS": "./few", "STEPS": 3},
    "which-method": {"PHOTOS": "./few", "MINUTES": 0.01},
    "fine-tune-and-publish": {"LABELLED": "./few", "STEPS": 3, "EPOCHS": 1},
    "clip-search": {"EPOCHS": 0.02},
}
"""What replaces the values of a notebook's cell "parameters"."""


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))["cells"]


def code_of(path: Path, settings: dict[str, object]) -> list[tuple[int, str]]:
    """(number, source) of the cells that run, with `settings` in place of the parameters' values.

    Raises ValueError for a setting that the parameters' cell does not assign.
    """
    found = []
    for number, cell in enumerate(cells_of(path)):
        source, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or "install" in tags:
            continue
        if "parameters" in tags:
            for name, value in settings.items():
                source, times = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", source, flags=re.MULTILINE)
                if times != 1:
                    raise ValueError(f"{path.name} has no parameter {name}")
        found.append((number, source))
    return found


def test_there_is_a_tiny_setting_of_each():
    assert TINY.keys() == {path.stem for path in NOTEBOOKS} and len(NOTEBOOKS) == 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_says_what_to_install_and_to_set(path):
    book = json.loads(path.read_text("utf-8"))
    assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None, "strip the outputs before you commit"
    assert all(set(cell["metadata"]) <= {"tags"} for cell in book["cells"])
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    tags = [tag for cell in code for tag in cell["metadata"].get("tags", [])]
    assert tags == ["install", "parameters"]
    assert "".join(code[0]["source"]).startswith("%pip install -q ")
    # elsewhere it is plain Python, so that the cells run without Jupyter
    for _, source in code_of(path, {}):
        ast.parse(source)


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::UserWarning")  # tiny runs are warned about
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_folder("few", 60, 0, 32)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, source in code_of(path, TINY[path.stem]):
        body = ast.parse(source)
        # as in a notebook, a value at the end of a cell is shown
        last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, f"{path.name}[{number}]", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"{path.name}[{number}]", "eval"), names)
            getattr(value, "_repr_html_", value.__repr__)()
            assert not (isinstance(value, int) and "main(" in source and value), f"cell {number} exits with {value}"


def test_a_setting_that_no_cell_has_is_refused():
    with pytest.raises(ValueError, match="no parameter NOTHING"):
        code_of(NOTEBOOKS[0], {"NOTHING": 1})
