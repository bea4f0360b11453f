"""The workflows call tox and little else, name no index, and ask for environments that exist."""

from __future__ import annotations

import configparser
import re

import pytest
import yaml
from projects import ROOT, projects

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TOX_ITSELF = "python -m pip install tox tox-uv --constraint constraints.txt"
NO_TOX = {
    "exit 1",  # a job that only gathers the others' results
    # the upload to GitHub; PyPI's is an action
    'gh release create "$GITHUB_REF_NAME" --repo "$GITHUB_REPOSITORY" --verify-tag '
    '--title "$GITHUB_REF_NAME" --notes-file notes.md',
}


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def environments() -> set[str]:
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / "tox.ini")
    own = {section.removeprefix("testenv:") for section in ini.sections() if section.startswith("testenv:")}
    return own | {word.strip() for word in ini["tox"]["env_list"].split(",")}


def steps(path):
    for name, job in yaml.safe_load(path.read_text())["jobs"].items():
        for step in job["steps"]:
            yield name, job, step


def test_there_are_three():
    assert [path.stem for path in FILES] == ["nightly", "release", "test"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_step_is_an_action_or_calls_tox(path):
    for name, job, step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), f"{name}: not pinned"
        elif step["run"] not in {TOX_ITSELF, *NO_TOX}:
            called = re.match(r'tox -e (\w+|"\$(?P<word>\w+)")( |$)', step["run"])
            assert called, f"{name}: {step['run']}"
            if not called["word"]:
                assert called[1] in environments(), step["run"]
            else:
                (value,) = re.fullmatch(r"\$\{\{ matrix\.(\w+) \}\}", step["env"][called["word"]]).groups()
                words = job["strategy"]["matrix"][value]
                assert isinstance(words, str) or set(words) <= environments()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_index_and_no_secret_is_named(path):
    text = path.read_text()
    assert not re.search(r"index-url|INDEX_URL|pypi\.org|https?://|secrets\.", text)


def test_nightly_runs_every_package_on_the_newest_and_on_the_oldest():
    jobs = workflow("nightly")["jobs"]
    assert set(jobs["newest"]["strategy"]["matrix"]["suite"]) == {p.word for p in projects().values()}
    assert set(jobs["oldest"]["strategy"]["matrix"]["package"]) == set(projects())


def test_only_the_job_that_publishes_can_say_who_we_are_and_it_waits_for_the_tests():
    jobs = workflow("release")["jobs"]
    able = [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})]
    assert able == ["publish"]
    assert set(jobs["publish"]["needs"]) == {"build", "floors"}
    assert jobs["publish"]["environment"] == "pypi"


def test_the_table_of_pythons_agrees_with_the_classifiers():
    pythons = workflow("test")["jobs"]["suites"]["strategy"]["matrix"]["python"]
    for project in projects().values():
        classifiers = project.table["project"]["classifiers"]
        named = [line.rpartition(" ")[2] for line in classifiers if re.search(r"Python :: 3\.\d+$", line)]
        assert named == pythons, project.name


def test_issue_forms_offer_every_package():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (packages,) = [field for field in form["body"] if field.get("id") == "package"]
    assert set(packages["attributes"]["options"]) == set(projects())
