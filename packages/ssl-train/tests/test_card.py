"""Model cards say what the run recorded, no more, and leave alone what people wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from ssl_core.hub.card import BEGIN, END, CardError, merge_card
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import OPENED, Layout
from ssl_train.card import write_run_card

LAYOUT = Layout(
    keymap=KeyMap(rows=()),
    to_theirs=lambda config: {},
    from_theirs=lambda values, preprocessor: None,
    infer=lambda state: None,
    others={"vit_mae": ("transformers", "image-feature-extraction", OPENED)},
)


def write_card(folder: Path, *, layout: Layout = LAYOUT, **options: Any) -> Path:
    return write_run_card(folder, layout=layout, **options)


CONFIG = {
    "model_type": "vit_mae",
    "ssl_core": {"method": "ssl_mae.mae:MAE", "config": {"mask_ratio": 0.75, "pool": "cls", "note": "a|b"}},
}
RUN = {
    "method": "ssl_mae.mae:MAE",
    "data": "/home/somebody/secret project/scenes",
    "data_fingerprint": "f00d",
    "init": "owner/base",
    "host": "cluster-7",
    "versions": {"torch": "2.13.0"},
}
EVALUATION = {
    "data": "scenes",
    "protocol": {"train": {"n": 1000}, "test": {"n": 400}, "knn": {"k": 20}},
    "rows": [
        {
            "features": "pretrained",
            "knn": 0.6125,
            "linear": 0.72,
            "fewshot": {"shots": 5, "mean": 0.5, "interval": 0.021},
        },
        {"features": "random init", "knn": 0.3},
    ],
}
METRICS = '{"step": 1, "loss": 2.5, "health/rankme": 31.5}\n{"step": 2, "lo\n{"step": 3, "loss": 1.25}\n'


def make(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def whole(folder: Path) -> Path:
    make(folder, run=RUN, evaluation=EVALUATION)
    (folder / "metrics.jsonl").write_text(METRICS)
    return folder


def card(folder: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """(YAML header, text) of the card that `write_card` writes."""
    parsed = ModelCard(write_card(folder, name="tester/mae-tiny", **options).read_text())
    return parsed.data.to_dict(), parsed.text


def test_the_header_holds_what_the_hub_reads(tmp_path: Path) -> None:
    header, _ = card(whole(tmp_path), base_model="owner/base", datasets=["owner/scenes"], tags=["tiny"])
    results = header.pop("model-index")
    assert header == {
        "base_model": "owner/base",
        "datasets": ["owner/scenes"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", "ssl-mae", "tiny"],
    }
    assert results[0]["name"] == "mae-tiny"
    assert results[0]["results"] == [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": "scenes", "type": "scenes"},
            "metrics": [
                {"type": "accuracy", "name": name, "value": value, "args": {"by": "ssl-core", "n": 400, **interval}}
                for name, value, interval in [
                    ("k-NN (k = 20)", 0.6125, {"interval in %": "(56.4–65.9)"}),
                    ("linear probe", 0.72, {"interval in %": "(67.4–76.2)"}),
                    ("5-shot", 0.5, {"interval in %": "± 2.1"}),
                ]
            ],
        }
    ]


def test_the_text_shows_every_row_with_its_n_and_how_to_load(tmp_path: Path) -> None:
    _, text = card(whole(tmp_path))
    assert "| pretrained | 61.3 (56.4–65.9) | 72.0 (67.4–76.2) | 50.0 ± 2.1 |" in text
    assert "| random init | 30.0 (25.7–34.7) |  |  |" in text
    assert "train n = 1,000, test n = 400" in text
    assert 'from ssl_mae.mae import MAE\nmodel = MAE.from_pretrained("tester/mae-tiny")\nfeatures = ' in text
    assert 'AutoModel.from_pretrained("tester/mae-tiny")' in text
    assert "- last metrics: step 3, loss 1.25, health/rankme 31.5" in text
    assert "| mask_ratio | 0.75 |" in text and r'| note | "a\|b" |' in text
    assert "- started from: owner/base" in text and "torch 2.13.0" in text


def test_folders_and_machines_are_not_published(tmp_path: Path) -> None:
    text = write_card(whole(tmp_path), name="tester/mae-tiny").read_text()
    assert "- data: scenes" in text
    assert "somebody" not in text and "cluster-7" not in text
    make(tmp_path, run={"data": "C:\\Users\\somebody\\birds"}, evaluation={**EVALUATION, "data": "~/photos/birds"})
    text = write_card(tmp_path, name="x").read_text()
    assert "- data: birds" in text and "on birds:" in text and "somebody" not in text and "photos" not in text


def test_what_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    header, text = card(make(tmp_path))
    assert "model-index" not in header and "Evaluation" not in text and "last metrics" not in text
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").unlink()
    header, text = card(tmp_path)
    assert header == {"license": "apache-2.0", "tags": ["self-supervised-learning"]}
    assert text.split() == ["#", "mae-tiny", *BEGIN.split(), *END.split()]


def test_a_missing_n_is_said_and_not_made_up(tmp_path: Path) -> None:
    rows = [{"features": "pretrained", "knn": 0.5}]
    header, text = card(make(tmp_path, evaluation={"data": "scenes", "rows": rows}))
    assert "| pretrained | 50.0 |" in text and "n was not recorded" in text
    assert header["model-index"][0]["results"][0]["metrics"][0]["args"] == {"by": "ssl-core"}


def test_a_method_that_transformers_does_not_know_names_its_own_library(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"ssl_core": {"method": "ssl_contrastive.simclr:SimCLR"}}))
    header, text = card(tmp_path)
    assert header["library_name"] == "ssl-contrastive" and "pipeline_tag" not in header
    assert "transformers" not in text


def test_the_same_run_gives_the_same_card(tmp_path: Path) -> None:
    first = write_card(whole(tmp_path), name="tester/mae-tiny").read_bytes()
    assert write_card(tmp_path, name="tester/mae-tiny").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_licence_is_the_one_given_and_then_the_one_in_the_card(tmp_path: Path) -> None:
    whole(tmp_path)
    assert card(tmp_path, license="cc-by-nc-4.0")[0]["license"] == "cc-by-nc-4.0"
    assert card(tmp_path)[0]["license"] == "cc-by-nc-4.0"
    assert card(tmp_path, license="mit")[0]["license"] == "mit"


def test_a_card_in_the_folder_keeps_words_outside_the_marks(tmp_path: Path) -> None:
    path = write_card(whole(tmp_path), name="tester/mae-tiny")
    path.write_text(path.read_text().replace("# mae-tiny", "# My MAE\n\nIt likes squares.") + "\n## Limits\n\nMany.\n")
    make(tmp_path, evaluation={**EVALUATION, "rows": [{"features": "pretrained", "knn": 0.9}]})
    text = write_card(tmp_path, name="tester/mae-tiny").read_text()
    assert "# My MAE\n\nIt likes squares.\n" in text and text.endswith("\n## Limits\n\nMany.\n")
    assert "90.0" in text and "61.3" not in text
    assert text.count(BEGIN) == text.count(END) == 1


OTHERS = """---
language: de
license: apache-2.0
tags:
- birds
datasets: owner/birds
model-index:
- name: their name
  results:
  - task:
      type: image-classification
    dataset:
      name: Birds
      type: owner/birds
    metrics:
    - type: accuracy
      value: 0.91
      name: by hand
    - type: accuracy
      value: 0.1
      name: k-NN (k = 20)
      args:
        by: ssl-core
---

# Their title

Their words.
"""


def test_merging_keeps_their_header_keys_figures_and_words(tmp_path: Path) -> None:
    new = write_card(whole(tmp_path), name="tester/mae-tiny", datasets=["owner/scenes"]).read_text()
    merged = ModelCard(merge_card(OTHERS, new))
    header = merged.data.to_dict()
    assert header["language"] == "de" and header["pipeline_tag"] == "image-feature-extraction"
    assert header["tags"] == ["birds", "self-supervised-learning", "ssl-mae"]
    assert header["datasets"] == ["owner/birds", "owner/scenes"]
    values = {result.metric_name: result.metric_value for result in merged.data.eval_results}
    assert values == {"by hand": 0.91, "k-NN (k = 20)": 0.6125, "linear probe": 0.72, "5-shot": 0.5}
    assert merged.text.startswith("\n# Their title\n\nTheir words.\n\n" + BEGIN)
    assert "# mae-tiny" not in merged.text


@pytest.mark.parametrize("old", [OTHERS, OTHERS.replace("\n", "\r\n"), "No header at all.\n", "", "\n\n# Title\n"])
def test_merging_again_changes_nothing(tmp_path: Path, old: str) -> None:
    new = write_card(whole(tmp_path), name="tester/mae-tiny").read_text()
    once = merge_card(old, new)
    assert merge_card(once, new) == once != old
    assert merge_card(new, new) == new
    assert BEGIN in once and all(line in once for line in old.split("\n---")[-1].splitlines())
    assert ("\r\n" in old) == ("\r\n" in once) and once.count("\n") == (once.count("\r\n") or once.count("\n"))


def test_a_licence_that_differs_stays_and_is_reported(tmp_path: Path) -> None:
    theirs = OTHERS.replace("apache-2.0", "cc-by-nc-4.0")
    new = write_card(whole(tmp_path), name="x").read_text()
    with pytest.warns(UserWarning, match=r"licence cc-by-nc-4\.0, the new one apache-2\.0: cc-by-nc-4\.0 is kept"):
        merged = merge_card(theirs, new)
    assert ModelCard(merged).data.license == "cc-by-nc-4.0"


def test_words_that_only_the_new_card_has_are_not_dropped_in_silence(tmp_path: Path) -> None:
    new = write_card(whole(tmp_path), name="x").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge_card(OTHERS, new)
    with pytest.warns(UserWarning, match="1 lines outside the marks .* left out: 'Written here.'"):
        merged = merge_card(OTHERS, new + "\nWritten here.\n")
    assert "Written here." not in merged


@pytest.mark.parametrize("header", ["tags: [", "- a\n- list", "model-index:\n- nonsense"])
def test_a_broken_header_is_an_error(tmp_path: Path, header: str) -> None:
    new = write_card(whole(tmp_path), name="x").read_text()
    with pytest.raises(CardError, match=r"header of README\.md cannot be read"):
        merge_card(f"---\n{header}\n---\n# Title\n", new)


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_broken_config_is_an_error_and_leaves_the_card(tmp_path: Path, content: str) -> None:
    path = write_card(whole(tmp_path), name="x")
    before = path.read_bytes()
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError):
        write_card(tmp_path, name="x")
    assert path.read_bytes() == before
