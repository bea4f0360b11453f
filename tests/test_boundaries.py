"""Rules that neither import-linter nor ruff can state."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from projects import Project, projects

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("shared-core/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")])
DISTRIBUTION = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}

# Joined from parts, so that this file does not contain them.
HOSTS = re.compile("|".join(["pypi" + r"\.org", "python" + r"hosted\.", "registry" + r"\.npmjs"]))
FOLDERS = "|".join(["work", "farm", "opt", "root", "tmp"])
MACHINE_PATH = re.compile(rf"(?<![\w.)}}/-])/({FOLDERS})/\w")


def tracked_lines() -> list[tuple[str, str]]:
    """(place, line) of every text file that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    lines = []
    for path in paths:
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            text = enumerate(data.decode().splitlines(), 1)
            lines += [(f"{path.relative_to(ROOT)}:{number}", line) for number, line in text]
    return lines


@pytest.mark.parametrize("pattern", [HOSTS, MACHINE_PATH], ids=["registry host", "machine path"])
def test_no_file_names_a(pattern):
    lines = tracked_lines()
    assert len(lines) > 1000
    assert [f"{place}: {line.strip()}" for place, line in lines if pattern.search(line)] == []


def declared(project: Path, *, extras: bool) -> set[str]:
    """Names of the distributions that a project requires, with its extras or without."""
    fields = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    optional = fields.get("optional-dependencies", {}) if extras else {}
    return {re.split(r"[^\w-]", line)[0] for line in chain(fields["dependencies"], *optional.values())}


def imported(tree: ast.AST) -> set[str]:
    """Top-level names that a module imports anywhere."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def brought(project: Project) -> set[str]:
    """What a project may import of ours, and what those distributions require."""
    ours = [projects(ROOT)[line.partition(">=")[0]] for line in project.ours]
    below = [declared(other.folder, extras=False) | brought(other) for other in ours]
    return {project.name}.union(*below)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_declared(path):
    project = next(parent for parent in path.parents if (parent / "pyproject.toml").exists())
    allowed = brought(Project(project)) | declared(project, extras=True)
    foreign = imported(ast.parse(path.read_text())) - sys.stdlib_module_names
    assert {DISTRIBUTION.get(name, name.replace("_", "-")) for name in foreign} <= allowed


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_code_unpickles_nothing_and_runs_no_foreign_code(path):
    # ruff's S301 covers pickle.load and its kin; these calls unpickle if asked to
    for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        name = ast.unparse(call.func)
        where = f"line {call.lineno}: {name}"
        assert name != "joblib.load", where
        assert name != "torch.load" or is_constant(keywords.get("weights_only"), True), where
        for unsafe in {"allow_pickle", "trust_remote_code"} & keywords.keys():
            assert is_constant(keywords[unsafe], False), where


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
    ],
)
def test_an_unsafe_call_is_found(line, tmp_path):
    path = tmp_path / "unsafe.py"
    path.write_text(line)
    with pytest.raises(AssertionError, match="line 1"):
        test_shipped_code_unpickles_nothing_and_runs_no_foreign_code(path)


def required(names: set[str]) -> set[str]:
    """Everything that installing `names` without extras brings, by this environment's metadata."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found


def test_language_models_come_without_torchvision_and_with_few_packages():
    brought = required({"ssl-lm"}) - required({"torch"})
    assert {"ssl-lm", "ssl-core", "ssl-train", "tokenizers"} <= brought
    assert not brought & {"torchvision", "transformers", "datasets"}
    # numpy and pillow included, which `tools/wheels.py` leaves out where torchvision brings them
    assert len(brought) <= 25, sorted(brought)


def test_a_language_model_trains_and_writes_where_torchvision_cannot_be_imported(tmp_path):
    code = """
import sys
sys.modules["torchvision"] = sys.modules["transformers"] = None
import torch
from ssl_lm import BERT, GPT, T5, GPTConfig, linear_cross_entropy, prepare_text
from pathlib import Path
Path("text.txt").write_text("a few words of text, over and over\\n" * 400)
prepare_text("text.txt", "tokens", tokenizer="train:400", workers=0)
from ssl_train.options import RunOptions
from ssl_lm import complete, train
config = GPTConfig(vocab_size=None, context=8, dim=8, depth=1, heads=1, epochs=0.1, batch_size=4, warmup_epochs=0)
gpt = train(config, "tokens", "run", options=RunOptions(device="cpu", workers=0))
print(complete(GPT.from_pretrained("run"), ["a few"], tokens=3)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
