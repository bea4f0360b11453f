from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_core.errors import BadSample
from ssl_train.evaluate.accuracy import wilson
from ssl_train.evaluate.evaluate import evaluate, table
from ssl_train.evaluate.features import Features, extract, histogram, pixels
from ssl_train.evaluate.fewshot import fewshot
from ssl_train.evaluate.knn import knn
from ssl_train.evaluate.linear import linear_probe

BASELINES = {"raw pixels": pixels, "colour histogram": histogram}


class Stripes:
    """Pictures whose class is where the bright stripe is, under noise."""

    def __init__(self, n: int, seed: int, classes=("top", "middle", "bottom"), bad=(), hide=()):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(n) % 3
        images = rng.integers(0, 160, (n, 3, 6, 6))
        for i, label in enumerate(self.labels):
            images[i, :, 2 * label : 2 * label + 2] += 60
        self.images = torch.from_numpy(images.astype(np.uint8))
        self.labels[list(hide)] = -1
        self.classes, self.bad, self.key = list(classes), set(bad), f"stripes {n} {seed}"
        self.loads = 0

    def __len__(self) -> int:
        return len(self.images)

    def load(self, i: int) -> dict:
        self.loads += 1
        if i in self.bad:
            raise BadSample("cut short")
        return {"image": self.images[i]}

    def name(self, i: int) -> str:
        return f"{self.key}/{i}"

    def fingerprint(self) -> str:
        return self.key


def view(sample: dict, rng: object) -> dict:
    return {"views": [sample["image"]]}


def rows_of_pixels(images: Tensor) -> Tensor:
    return images.float().mean(dim=(1, 3))  # b h


@pytest.fixture(scope="module")
def result() -> dict:
    encoders = {"pretrained": rows_of_pixels, **BASELINES}
    return evaluate(encoders, Stripes(120, 0), Stripes(60, 1), view, shots=(5, 2), data="stripes", seeds=4)


def test_the_result_is_what_evaluation_json_holds(result):
    assert json.loads(json.dumps(result)) == result
    assert result["data"] == "stripes"
    assert [row["features"] for row in result["rows"]] == ["pretrained", *BASELINES]
    for row in result["rows"]:
        assert 0 <= row["knn"] <= 1 and 0 <= row["linear"] <= 1
        assert set(row["fewshot"]) == {"shots", "mean", "interval"} and row["fewshot"]["shots"] == 5
        assert set(row["seconds"]) == {"knn", "linear", "fewshot"}
    good, _, colours = result["rows"]
    assert good["linear"] > 0.95 and colours["linear"] < 0.6
    assert [row["details"]["dim"] for row in result["rows"]] == [6, 108, 64]


def test_the_result_says_how_it_was_made(result):
    protocol = result["protocol"]
    assert protocol["train"] == {
        "n": 120, "skipped": 0, "unlabelled": 0, "fingerprint": "stripes 120 0",
    }  # fmt: skip
    assert protocol["test"]["n"] == 60 and protocol["classes"] == 3
    assert (protocol["knn"]["k"], protocol["knn"]["T"]) == (20, 0.07)
    assert protocol["linear"]["seed"] == 0 and len(protocol["linear"]["grid"]) > 10
    assert protocol["fewshot"]["seeds"] == [0, 1, 2, 3] and protocol["fewshot"]["C"] == 1.0
    assert np.array(protocol["fewshot"]["indices"]).shape == (4, 3, 5)


def test_every_figure_is_that_of_its_protocol(result):
    train, test = Stripes(120, 0), Stripes(60, 1)
    x, y = extract(rows_of_pixels, train, view).labelled()
    queries, truth = extract(rows_of_pixels, test, view).labelled()
    row = result["rows"][0]
    predicted = knn(x, y, queries)
    assert list(row["details"]["knn"]) == ["10", "20", "100", "120"]
    for k, scores in row["details"]["knn"].items():
        assert scores["top1"] == pytest.approx((predicted[int(k)] == truth).double().mean().item())
    assert row["knn"] == row["details"]["knn"]["20"]["top1"]
    probe = linear_probe(x, y, queries, truth)
    assert (row["linear"], row["details"]["linear"]["C"]) == (probe.top1, probe.C)
    for i, shots in enumerate((5, 2)):
        few = fewshot(x, y, queries, truth, shots=shots, seeds=4)
        assert row["details"]["fewshot"]["logistic"][i]["accuracies"] == few.accuracies
        assert row["details"]["fewshot"]["logistic"][i]["interval"] == few.interval
        drawn = np.array(result["protocol"]["fewshot"]["indices"])[:, :, :shots]
        assert drawn.tolist() == few.indices
    centroid = fewshot(x, y, queries, truth, shots=2, seeds=4, head="centroid")
    assert row["details"]["fewshot"]["centroid"][1]["mean"] == centroid.mean


def test_the_few_shot_headline_is_the_logistic_head_at_the_first_shots(result):
    for row in result["rows"]:
        few = row["details"]["fewshot"]["logistic"][0]
        assert row["fewshot"] == {key: few[key] for key in ("shots", "mean", "interval")}
    heads = result["rows"][2]["details"]["fewshot"]
    assert heads["logistic"][0]["mean"] != heads["centroid"][0]["mean"]


def test_only_what_is_asked_for_is_run():
    got = evaluate({"a": rows_of_pixels}, Stripes(30, 0), Stripes(9, 1), view, ["knn"], data="s")
    assert set(got["rows"][0]) == {"features", "knn", "details", "seconds"}
    assert set(got["protocol"]) == {"train", "test", "classes", "seconds", "precision", "knn"}


@pytest.mark.parametrize("n", range(1, 18))
def test_any_number_of_test_samples_is_counted_once(n):
    bank, test = Stripes(30, 0), Stripes(n, n)
    got = evaluate({"a": rows_of_pixels}, bank, test, view, ["knn"], data="s", batch_size=1 + n % 5)
    predicted = knn(rows_of_pixels(bank.images), torch.from_numpy(bank.labels), rows_of_pixels(test.images), ks=(20,))[
        20
    ]
    right = sum(p == y for p, y in zip(predicted.tolist(), test.labels.tolist(), strict=True))
    assert got["rows"][0]["knn"] == right / n
    assert got["protocol"]["test"]["n"] == n and test.loads == n


def test_features_from_before_give_the_same_rows():
    train, test = Stripes(60, 0), Stripes(30, 1)
    pair = (extract(rows_of_pixels, train, view), extract(rows_of_pixels, test, view))
    encoders = {"now": rows_of_pixels, "before": pair}
    now, before = evaluate(encoders, train, test, view, data="s", seeds=3)["rows"]
    [alone] = evaluate({"before": pair}, None, None, None, data="s", seeds=3)["rows"]
    for key in ("knn", "linear", "fewshot"):
        assert now[key] == before[key] == alone[key]
    assert before["details"] == alone["details"]


def test_what_is_left_out_is_counted():
    train, test = Stripes(40, 0, bad=[3, 9], hide=[0, 1, 2]), Stripes(20, 1)
    with pytest.warns(UserWarning, match="2 of 40 samples"):
        got = evaluate({"a": rows_of_pixels}, train, test, view, ["knn"], data="s")
    facts = got["protocol"]["train"]
    assert (facts["n"], facts["skipped"], facts["unlabelled"]) == (35, 2, 3)
    assert "train: 2 unreadable, 3 unlabelled samples left out" in table(got)


def test_unfair_comparisons_are_refused():
    train, test = Stripes(30, 0), Stripes(12, 1)
    encoders = {"a": rows_of_pixels}
    with pytest.raises(ValueError, match="same samples"):
        evaluate(encoders, train, Stripes(30, 0), view, data="s")
    with pytest.raises(ValueError, match="other classes"):
        evaluate(encoders, train, Stripes(12, 1, classes=("top", "bottom", "middle")), view, data="s")
    unseen = Stripes(12, 1)
    unseen.labels = unseen.labels + 1
    with pytest.raises(ValueError, match=r"labels \[3\] of the test data"):
        evaluate(encoders, train, unseen, view, data="s")
    other = Features(torch.eye(30), torch.zeros(30, dtype=torch.int64), [str(i) for i in range(30)])
    pair = (other, extract(rows_of_pixels, test, view))
    with pytest.raises(ValueError, match="'b' and 'a' have other labels"):
        evaluate({"a": rows_of_pixels, "b": pair}, train, test, view, data="s")
    nobody = Stripes(12, 1, hide=range(12))
    with pytest.raises(ValueError, match="no sample has a label"):
        evaluate(encoders, train, nobody, view, data="s")


def test_wrong_requests_are_refused():
    train, test = Stripes(30, 0), Stripes(12, 1)
    for encoders, protocols, shots in (
        ({}, ["knn"], (5,)),
        ({"a": rows_of_pixels}, [], (5,)),
        ({"a": rows_of_pixels}, ["svm"], (5,)),
        ({"a": rows_of_pixels}, ["fewshot"], ()),
    ):
        with pytest.raises(ValueError, match="knn, linear, fewshot"):
            evaluate(encoders, train, test, view, protocols, shots, data="s")
    with pytest.raises(ValueError, match="train, test and transform"):
        evaluate({"a": rows_of_pixels}, None, None, None, data="s")
    with pytest.raises(ValueError, match="class 0 has 10 samples, 11 shots"):
        evaluate({"a": rows_of_pixels}, train, test, view, shots=(11,), data="s")


def test_the_table_is_aligned_text(result):
    lines = table(result).splitlines()
    assert lines[0].split() == ["features", "k-NN", "linear", "5-shot", "2-shot"]
    assert len({len(line) for line in lines[:5]}) == 1
    first = result["rows"][0]
    assert lines[2].startswith("pretrained ")
    assert f"{100 * first['knn']:.1f}" in lines[2] and f"{100 * first['linear']:.1f}" in lines[2]
    assert f"{100 * first['fewshot']['mean']:.1f} ± " in lines[2]
    assert lines[5] == ("top-1 in % on stripes: 120 train, 60 test, k = 20, 95 % intervals, ± over 4 draws")
    assert len(lines) == 6


def test_the_table_has_room_for_fine_tuning_and_for_gaps(result):
    rows = [dict(result["rows"][0], finetune=0.875), {"features": "random init", "finetune": 0.5}]
    lines = table({**result, "rows": rows}).splitlines()
    assert lines[0].split() == ["features", "k-NN", "linear", "fine-tune", "5-shot", "2-shot"]
    assert "87.5" in lines[2].split() and lines[3].split()[2:] == ["-", "-", "50.0", "(37.7–62.3)", "-", "-"]
    alone = table({"data": "d", "protocol": {"finetune": {}}, "rows": rows[1:]})
    assert [line.split() for line in alone.splitlines()] == [
        ["features", "fine-tune"], ["-" * 22], ["random", "init", "50.0"], "top-1 in % on d".split(),
    ]  # fmt: skip


def test_the_terminal_has_the_intervals_of_the_card(result):
    row = result["rows"][0]
    low, high = wilson(row["linear"], result["protocol"]["test"]["n"])
    assert f"{100 * row['linear']:.1f} ({100 * low:.1f}–{100 * high:.1f})" in table(result)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson 1927
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
