"""The arrows of the mermaid pictures agree with the import contracts and the dependencies."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
DISTRIBUTIONS = {
    project["name"].replace("-", "_"): project
    for path in [ROOT / "shared-core" / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]
    for project in [tomllib.loads(path.read_text())["project"]]
}
# A box of a picture stands for modules; the model files are a part of every method package.
SHARED = {"engine": "ssl_train", "core": "ssl_core", "suite": "ssl_testing"}
METHODS = set(DISTRIBUTIONS) - set(SHARED.values())
BOXES = {"methods": METHODS, **{box: {module} for box, module in SHARED.items()}}


def closure(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Everything that each name leads to, over any number of arrows."""
    reach = {name: set(targets) for name, targets in edges.items()}
    for middle in reach:
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    return reach


def drawn(picture: str) -> dict[str, set[str]]:
    """What each box of a mermaid flowchart leads to. An arrow at a subgraph means all its boxes.

    Raises ValueError for a line that is none of: box, subgraph, arrows; and for a box whose label
    names other modules than the box stands for.
    """
    edges: dict[str, set[str]] = {}
    inside: dict[str, list[str]] = {}
    group = None
    for line in picture.strip().splitlines()[1:]:
        line = line.strip()
        if box := re.fullmatch(r'(subgraph )?(\w+)\["(.*)"\]', line):
            named = set(re.findall(r"ssl_\w+", box[3]))
            if box[2] in BOXES and named and named != BOXES[box[2]]:
                raise ValueError(f"the box {box[2]} names {sorted(named)}, not {sorted(BOXES[box[2]])}")
            if box[1]:
                group = box[2]
                inside[group] = []
            else:
                edges[box[2]] = set()
                inside.get(group, []).append(box[2])
        elif line == "end":
            group = None
        elif re.fullmatch(r"\w+( --> \w+)+", line):
            for source, target in pairwise(line.split(" --> ")):
                for start in inside.get(source, [source]):
                    edges[start] |= set(inside.get(target, [target]))
        else:
            raise ValueError(f"neither box nor arrow: {line}")
    return closure(edges)


def contracted(contracts: list[dict]) -> dict[str, set[str]]:
    """The same, as the import contracts say it: what each box may import."""
    box_of = {module: box for box, modules in BOXES.items() for module in modules}
    kinds = {(contract["type"], *contract.get("forbidden_modules", ())): contract for contract in contracts}
    layers = [{box_of[module] for module in layer.split(" | ")} for layer in kinds["layers",]["layers"]]
    order = [box for (box,) in layers]  # one box to a layer
    edges = {box: set(order[place + 1 :]) for place, box in enumerate(order)}
    model = kinds["forbidden", "ssl_train"]
    edges["model"] = edges["methods"] - {box_of[module] for module in model["forbidden_modules"]}
    edges["methods"].add("model")
    edges["suite"] = {"engine"}  # no contract: test_dependencies_agree_with_the_contracts
    edges["tests"] = {"methods", "suite"}
    for importer in kinds["protected",]["allowed_importers"]:
        edges[box_of[importer]].add("suite")
    return closure(edges)


def pictures(page: str) -> list[str]:
    return re.findall(r"^```mermaid\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_pictures_agree_with_the_contracts(page):
    assert [drawn(picture) for picture in pictures(page)] == [contracted(CONTRACTS)]


def test_no_other_page_has_a_picture_that_nothing_compares():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/*.md"), *ROOT.glob("shared-core/*.md")]
    assert sorted(page.name for page in pages if "```mermaid" in page.read_text()) == sorted(PAGES)


def test_dependencies_agree_with_the_contracts():
    needs = {
        module: {name for name in DISTRIBUTIONS if re.search(rf"\b{name.replace('_', '-')}\b", str(p["dependencies"]))}
        for module, p in DISTRIBUTIONS.items()
    }
    reach, may = closure(needs), contracted(CONTRACTS)
    for box, modules in BOXES.items():
        expected = set().union(*(BOXES[target] for target in may[box] if target != "model"))
        assert {module: reach[module] for module in modules} == dict.fromkeys(modules, expected)


@pytest.mark.parametrize("arrow", ["core --> engine", "model --> engine", "engine --> suite", "engine --> methods"])
@pytest.mark.parametrize("page", PAGES)
def test_a_wrong_arrow_is_seen(page, arrow):
    assert drawn(pictures(page)[0] + f"    {arrow}\n") != contracted(CONTRACTS)


@pytest.mark.parametrize("page", PAGES)
def test_a_missing_arrow_and_a_missing_package_are_seen(page):
    picture = pictures(page)[0]
    assert drawn(picture.replace("suite --> engine", "suite --> core")) != contracted(CONTRACTS)
    with pytest.raises(ValueError, match="names"):
        drawn(picture.replace("ssl_train", "ssl_beit"))


def test_a_changed_contract_is_seen():
    opened = [{**contract, "allowed_importers": ["ssl_train"]} for contract in CONTRACTS]
    assert contracted(opened) != contracted(CONTRACTS)
