"""All packages look the same: if you know one, you know them all.

These tests read files. Of our packages they import what is free of torch: config.py and verbs.py.
"""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from projects import SHARED, methods, paper_modules, projects

from ssl_testing.strangers import STRANGERS

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = [project.folder for project in projects(ROOT).values()]
PACKAGES = [project.folder for project in methods(ROOT).values()]
SAME_FILES = {"__init__.py", "__main__.py", "config.py", "convert.py", "py.typed", "show.py", "views.py"}
VAGUE = {"utils", "util", "misc", "common", "helpers", "helper"}
FRAGMENT = re.compile(r"(\d+|\+[\w-]+)\.(added|changed|deprecated|removed|fixed)\.md")

every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
every_project = pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)


def module_of(project: Path) -> Path:
    (module,) = (project / "src").glob("ssl_*")
    return module


def table(project: Path) -> dict:
    return tomllib.loads((project / "pyproject.toml").read_text())


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^## (.+)$", text, flags=re.MULTILINE)


def test_there_are_packages_to_check():
    assert PACKAGES


@every_package
def test_package_has_the_shared_files_and_a_file_per_paper(package):
    files = {path.name: path for path in module_of(package).iterdir() if path.is_file()}
    assert files.keys() >= SAME_FILES
    docstrings = {
        name: ast.get_docstring(ast.parse(path.read_text())) or ""
        for name, path in files.items()
        if name.endswith(".py") and name not in SAME_FILES
    }
    assert any("arXiv" in text for text in docstrings.values()), "no file names its paper's arXiv id"


@every_project
def test_no_file_has_a_vague_name(project):
    assert not [path for path in project.rglob("*.py") if path.stem in VAGUE]


@every_project
def test_project_has_its_surroundings(project):
    names = {path.name for path in project.iterdir()}
    wanted = {"CHANGELOG.md", "LICENSE", "README.md", "changelog.d", "pyproject.toml", "src", "tests"}
    assert wanted <= names
    assert (module_of(project) / "py.typed").exists()
    assert (project / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert list((project / "tests").glob("test_*.py"))


@every_package
def test_readme_has_the_same_headings_as_the_other_packages(package):
    ours, first = headings(package / "README.md"), headings(PACKAGES[0] / "README.md")
    assert [heading.replace("Your own text", "Your own images") for heading in ours] == first != []


@every_project
def test_project_table_follows_the_house_form(project):
    fields, first = table(project)["project"], table(PROJECTS[0])["project"]
    assert fields["name"].replace("-", "_") == module_of(project).name
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["version"]), "a static release version"
    assert "dynamic" not in fields
    assert fields["description"] and fields["keywords"]
    for field in ("license", "license-files", "readme", "requires-python"):
        assert fields[field] == first[field], field
    assert "Typing :: Typed" in fields["classifiers"]


@every_package
def test_package_requires_a_capped_core_and_engine_and_no_other_package(package):
    pyproject = table(package)
    ours = [line for line in pyproject["project"]["dependencies"] if line.startswith("ssl-")]
    assert [line.partition(">=")[0] for line in ours] == ["ssl-core", "ssl-train"]
    assert [line for line in ours if not re.fullmatch(r"ssl-\w+>=\d+\.\d+,<\d+", line)] == []
    module = module_of(package).name
    assert pyproject["project"]["scripts"] == {package.name: f"{module}.__main__:main"}


@every_project
def test_uv_finds_our_requirements_in_this_tree(project):
    wanted = {line.partition(">=")[0] for line in projects(ROOT)[table(project)["project"]["name"]].ours}
    sources = table(project)["tool"].get("uv", {}).get("sources", {})
    assert sources.keys() >= wanted
    for name, source in sources.items():
        assert source == {"path": source["path"], "editable": True}
        assert (project / source["path"]).resolve() == projects(ROOT)[name].folder


def test_engine_stands_on_the_core_and_the_suite_on_the_engine():
    wanted = {"ssl-core": [], "ssl-train": ["ssl-core"], "ssl-testing": ["ssl-train"]}
    assert wanted.keys() == SHARED.keys()
    for name, needs in wanted.items():
        assert [line.partition(">=")[0] for line in projects(ROOT)[name].ours] == needs


def test_root_is_no_project_and_names_no_sources():
    root = table(ROOT)
    assert "project" not in root
    assert "uv" not in root["tool"]


@every_project
def test_changelog_tells_of_the_version_and_fragments_are_well_named(project):
    fragments = [path.name for path in (project / "changelog.d").iterdir() if path.suffix == ".md"]
    assert [name for name in fragments if not FRAGMENT.fullmatch(name)] == []
    releases = re.findall(r"^## (\S+) \(", (project / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = releases[0] if releases else None
    assert newest == table(project)["project"]["version"] or (newest is None and fragments)


@every_project
def test_tools_know_the_project(project):
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    found = projects(ROOT)[table(project)["project"]["name"]]
    assert found.word in re.split(r"[,\s]+", tox["tox"]["env_list"])
    assert f"-e ./{project.relative_to(ROOT)}" in tox["packages"]["all"].splitlines()
    assert found.module.name in table(ROOT)["tool"]["importlinter"]["root_packages"]


@every_package
def test_import_contracts_know_the_package(package):
    layers = next(c["layers"] for c in table(ROOT)["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    assert module_of(package).name in re.split(r"\s*\|\s*", layers[0])


# ---------------------------------------------------------------- one vocabulary


def assigned(file: Path) -> set[str]:
    """Names that a module assigns at its top level."""
    targets: list[ast.expr] = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def recipes_of(package: Path) -> dict:
    return import_module(f"{module_of(package).name}.config").RECIPES


@every_package
def test_recipes_presets_and_layouts_have_the_same_names_everywhere(package):
    module = module_of(package)
    assert {"RECIPES", "PRESETS"} <= assigned(module / "config.py")
    assert "LAYOUTS" in assigned(module / "convert.py")
    recipes, presets = recipes_of(package), import_module(f"{module.name}.config").PRESETS
    assert recipes.keys() == presets.keys()
    for name, recipe in recipes.items():
        assert recipe.name == name
        assert recipe.package == module.name
        assert recipe.config.startswith(f"{module.name}.config:")
        assert all(callable(preset) for preset in presets[name].values())


@every_package
def test_measures_live_in_measure_py(package):
    module = module_of(package).name
    named = [recipe.measure for recipe in recipes_of(package).values() if recipe.measure is not None]
    assert [name for name in named if not name.startswith(f"{module}.measure:")] == []


@every_package
def test_a_verb_is_run_of_a_file_with_its_name(package):
    module = module_of(package)
    if not (module / "verbs.py").exists():
        return
    for name, verb in import_module(f"{module.name}.verbs").VERBS.items():
        assert verb.run == f"{module.name}.{name}:run"
        functions = [
            node for node in ast.parse((module / f"{name}.py").read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        (run,) = [node for node in functions if node.name == "run"]
        assert len(run.args.args) == 2, "run(recipe, arguments)"


@every_package
def test_public_names_are_lazy_and_written_once(package):
    code, stub = (module_of(package) / f"__init__.{suffix}" for suffix in ("py", "pyi"))
    calls = {ast.unparse(node.value) for node in ast.walk(ast.parse(code.read_text())) if isinstance(node, ast.Assign)}
    assert any(call.endswith("attach_stub(__name__, __file__)") for call in calls)
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    assert sorted(names) == sorted(set(names)) != []
    words = {node.value for node in ast.walk(ast.parse(code.read_text())) if isinstance(node, ast.Constant)}
    assert not words & set(names)


@every_package
def test_every_package_exports_the_same_functions_for_notebooks(package):
    stub = (module_of(package) / "__init__.pyi").read_text()
    reads_images = {recipe.eval_view for recipe in recipes_of(package).values()} == {"ssl_train.data.views:eval_view"}
    for name in ["train", "evaluate", *(["embed"] if reads_images else [])]:
        assert f"from .training import {name} as {name}\n" in stub


KINDS = {
    "conformance": "a class per recipe that inherits the suite of ssl-testing",
    "loss": "the loss against plain Python; fast forms against the definition",
    "parity": "the same numbers as the published implementation on random weights",
    "weights": "folders and checkpoints in and out; bad checkpoints; the Hub",
    "learns": "a short run beats random initialisation",
    "presets": "each preset beside its source",
    "commands": "the command line of the package's own verbs",
    "ranks": "several processes equal one",
    "collapse": "collapse is named while it happens",
    "step": "whole training steps against a plain implementation",
}
"""What a test file of a method package holds; a file may also have the name of a module it
tests."""


@every_package
def test_test_files_are_named_for_what_they_test(package):
    words = {path.stem.removeprefix("test_") for path in (package / "tests").glob("test_*.py")}
    subjects = KINDS.keys() | {path.stem for path in module_of(package).glob("*.py")}
    # each of several methods may have its own: test_parity_bert.py
    recipes = [name.replace("-", "_") for name in recipes_of(package)]
    allowed = subjects | {f"{subject}_{recipe}" for subject in subjects for recipe in recipes}
    assert words - allowed == set()
    papers = {module.rpartition(".")[2] for module in paper_modules(methods(ROOT)[package.name])}
    assert "conformance" in words
    assert words & {"loss", *papers}, "no test of a loss"


def test_the_packages_together_train_on_every_folder_that_a_stranger_may_have():
    suites = [path.read_text() for package in PACKAGES for path in (package / "tests").glob("test_conformance.py")]
    assert [name for name in STRANGERS if not any(f'"{name}"' in suite for suite in suites)] == []
