"""Who imports whom, read from the syntax tree of every source file."""

from __future__ import annotations

import pytest
from import_graph import chain, circle, import_graph

GRAPH = import_graph()


def test_no_imports_go_in_a_circle():
    assert circle(GRAPH) == []


@pytest.mark.parametrize(
    "back",
    [
        "import ssl_x.a",
        "from ssl_x import a",
        "from . import a",
        "def f():\n    from ssl_x.a import b",
        "if TYPE_CHECKING:\n    from .a import b",
    ],
)
def test_a_circle_is_seen(back, tmp_path):
    folder = tmp_path / "ssl_x"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text("from ssl_x.b import c")
    (folder / "b.py").write_text('NAME = "ssl_x.a:f"')
    assert circle(import_graph([tmp_path])) == []
    (folder / "b.py").write_text(back)
    assert set(circle(import_graph([tmp_path]))) == {"ssl_x.a", "ssl_x.b"}


def test_a_chain_leads_through_lazy_names(tmp_path):
    for package in ("ssl_x", "ssl_y"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "ssl_x" / "__init__.pyi").write_text("from .a import A as A")
    (tmp_path / "ssl_x" / "a.py").write_text("import ssl_y")
    (tmp_path / "ssl_x" / "b.py").write_text("def f():\n    from ssl_x import A")
    graph = import_graph([tmp_path])
    assert chain(graph, "ssl_x.b", "ssl_y") == ["ssl_x.b", "ssl_x", "ssl_x.a", "ssl_y"]
    assert chain(graph, "ssl_y", "ssl_x") == []
