"""What is held out of data without a test part, and what figures say of the samples they are of."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_core.config import ImageConfig
from ssl_core.errors import DataError
from ssl_core.method import Recipe
from ssl_testing.tiny import RECIPES, Tiny
from ssl_train.cli.main import main
from ssl_train.data import split
from ssl_train.data.sources import open_source
from ssl_train.data.split import held_out, keys_of, told_by
from ssl_train.opened import Opened

RECIPE = RECIPES["tiny"]
CONFIG = ImageConfig(image_size=8, patch_size=4)
COPIES = " of them COPIES of training samples, which raise every figure: remove them"
SHORT = ("--max-steps", "1", "--precision", "fp32", "--device", "cpu", "--workers", "0")


def write(folder, names, seed=0):
    """A noisy picture for each name, another one for each seed."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, *name.encode()])
        Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    return folder


def of_classes(number, classes=("cat", "dog"), start=0):
    return [f"{name}/{i}.png" for name in classes for i in range(start, start + number)]


def names(source):
    return [source.name(i) for i in range(len(source))]


def random_keys(number, seed=0):
    return np.random.default_rng(seed).integers(2**64, size=number, dtype=np.uint64)


# ---- the rule


def test_a_share_is_held_out_by_the_key_alone():
    keys = random_keys(10_000)
    held = held_out(keys, 0.2)
    assert 0.19 < held.mean() < 0.21
    order = np.random.default_rng(1).permutation(10_000)
    assert np.array_equal(held_out(keys[order], 0.2), held[order])
    assert np.array_equal(held_out(keys[:5000], 0.2), held[:5000]), "what is added later moves nothing"
    assert (held >= held_out(keys, 0.1)).all(), "a smaller share is part of a larger one"
    assert not held_out(keys, 0.0).any() and not held_out(keys[:0], 0.2).any()


def test_copies_stay_on_one_side():
    keys = np.repeat(random_keys(300), 3)
    held = held_out(keys, 0.2, np.tile([0, 1, 2], 300)).reshape(300, 3)
    assert (held.all(1) | ~held.any(1)).all() and held.any()


@pytest.mark.parametrize("seed", range(20))
def test_every_class_keeps_a_sample_and_large_ones_are_tested(seed):
    sizes = [1, 1, 2, 3, 5, 8, 20]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    held = held_out(random_keys(len(labels), seed), 0.2, labels)
    for label, size in enumerate(sizes):
        assert not held[labels == label].all()
        assert held[labels == label].any() or size < 5


@pytest.mark.parametrize(("number", "labels"), [(2, None), (12, None), (12, np.arange(12) // 2), (2, np.zeros(2))])
def test_no_side_of_few_samples_is_empty(number, labels):
    for seed in range(20):
        held = held_out(random_keys(number, seed), 0.2, None if labels is None else labels.astype(int))
        assert held.any() and not held.all()


def test_classes_of_one_picture_are_never_held_out():
    assert not held_out(random_keys(12), 0.9, np.arange(12)).any()
    same = np.repeat(random_keys(3), 4)  # three pictures, four copies of each
    assert not held_out(same, 0.9, np.repeat([0, 1, 2], 4)).any()


def test_a_picture_with_two_labels_leaves_no_class_without_training_samples():
    keys = np.array([1, 2**63, 1], dtype=np.uint64)
    held = held_out(keys, 0.2, np.array([0, 0, 1]))  # the first one is all that class 1 has
    assert not held[2] and not held[:2].all()


def test_samples_without_a_label_are_held_out_only_if_none_has_one_or_as_copies():
    keys = random_keys(1000)
    labels = np.where(np.arange(1000) < 500, 0, -1)
    held = held_out(keys, 0.2, labels)
    assert held[:500].any() and not held[500:].any()
    assert held_out(np.concatenate([keys, keys[:500]]), 0.2, np.append(labels, [-1] * 500))[1000:].any()
    assert held_out(keys, 0.2, np.full(1000, -1)).any()


def test_keys_are_those_of_contents_and_copies_share_them(tmp_path):
    write(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    shutil.copy(tmp_path / "a/1.png", tmp_path / "b/copy.png")
    (tmp_path / "b/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(tmp_path)
    first, second, third, copy, gone = keys_of(source, "content")
    assert copy == first and len({first, second, third, gone}) == 4
    assert gone == keys_of(source, "name")[4] and len(set(keys_of(source, "name"))) == 5


def test_large_uncompressed_pictures_with_black_borders_are_told_apart(tmp_path):
    for i in range(2):
        pixels = np.zeros((200, 200, 3), np.uint8)
        pixels[100] = i
        Image.fromarray(pixels).save(tmp_path / f"{i}.bmp")
    assert len(set(keys_of(open_source(tmp_path), "content"))) == 2


def test_many_samples_are_told_apart_by_name(tmp_path, monkeypatch):
    source = open_source(write(tmp_path, ["1.png", "2.png", "3.png"]))
    assert told_by(source) == "content"
    monkeypatch.setattr(split, "MANY", 2)
    assert told_by(source) == "name"


# ---- what a training sees


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """`tiny train` on some data into a run folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def train_(data, out="run", *more):
        assert main({"tiny": RECIPE}, ["train", "--data", str(data), "--out", out, *SHORT, *more]) == 0
        return capsys.readouterr().out

    return train_


def stored(run="run"):
    with open(f"{run}/run.json") as file:
        return json.load(file)


def test_a_labelled_folder_is_divided_before_training_and_says_so(train, tmp_path):
    write(tmp_path / "data", of_classes(40))
    said = train("data")
    opened = Opened(RECIPE, CONFIG, "data")
    train_part, test_part = set(names(opened.raw("train"))), set(names(opened.raw("test")))
    assert train_part.isdisjoint(test_part) and len(train_part | test_part) == 80
    number = len(test_part)
    assert f"held out: {number} of 80 samples, by a hash of their content" in said and "--held-out 0" in said
    assert f"8 steps or more an epoch of {80 - number} " in said, "settings are chosen for the training part"
    run = stored()
    assert run["held_out"] == 0.2 and run["split"]["by"] == "content" and run["split"]["rule"] in said
    assert run["data_fingerprint"] == opened.raw("train").fingerprint()
    assert len(np.fromfile("run/trained_on.keys", np.uint64)) == 80 - number


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_tables_and_arrays_are_divided_too(tmp_path, kind):
    write(tmp_path, of_classes(10))
    source = open_source(tmp_path)
    if kind == "csv":
        rows = [f"{source.name(i)},{source.labels[i]}" for i in range(20)]
        (tmp_path / "data.csv").write_text("\n".join(["path,label", *rows]))
    else:
        images = np.stack([source.load(i)["image"].permute(1, 2, 0).numpy() for i in range(20)])
        np.savez(tmp_path / "data.npz", images=images, labels=source.labels)
    opened = Opened(RECIPE, CONFIG, tmp_path / f"data.{kind}")
    parts = opened.raw("train"), opened.raw("test")
    assert sum(map(len, parts)) == 20 and all(np.unique(part.labels).tolist() == [0, 1] for part in parts)


def test_no_labels_no_test_part(train, tmp_path):
    said = train(write(tmp_path / "data", [f"{i}.png" for i in range(20)]))
    assert "held out: nothing" in said and "--held-out 0.2" in said
    assert stored()["held_out"] == 0.0 and len(np.fromfile("run/trained_on.keys", np.uint64)) == 20


def test_a_share_that_was_asked_for_is_stored_and_taken_on_resume(train, tmp_path, capsys):
    write(tmp_path / "data", [f"{i}.png" for i in range(40)])
    train("data", "run", "--held-out", "0.4")
    assert stored()["held_out"] == 0.4
    train("data", "run")  # the same run, without the flag
    line = ["train", "--data", "data", "--out", "run", *SHORT, "--held-out", "0.1"]
    assert main({"tiny": RECIPE}, line) == 2
    assert "held_out: 0.4 → 0.1" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["parted", None])
def test_a_share_of_data_with_a_test_part_is_refused(tmp_path, monkeypatch, capsys, data):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        write(tmp_path / "parted" / part, of_classes(8))
    given = [] if data is None else ["--data", data]
    assert main({"tiny": RECIPE}, ["train", *given, "--out", "run", *SHORT, "--held-out", "0.3"]) == 2
    assert "has a test part of its own" in capsys.readouterr().err


def test_parts_of_a_folder_stay_as_they_are(tmp_path):
    write(tmp_path / "train", of_classes(8))
    write(tmp_path / "test", of_classes(4), seed=1)
    opened = Opened(RECIPE, CONFIG, tmp_path)
    whole = open_source(tmp_path), open_source(tmp_path, split="test")
    for name, source in zip(("train", "test"), whole, strict=True):
        assert names(opened.raw(name)) == names(source)
        assert opened.raw(name).fingerprint() == source.fingerprint()
    assert opened.division == "" and opened.held_out is None


# ---- what an evaluation says


@pytest.fixture
def opened(tmp_path):
    """What `evaluate` opens: weights of the run that saw some data, and other data or the same."""
    recipe = Recipe("tiny", "a", config="a:B", method="a:B", views="a:b", show="a:c")
    write(tmp_path / "whole", of_classes(20))
    write(tmp_path / "parted/train", of_classes(16))
    write(tmp_path / "parted/test", of_classes(4), seed=1)
    write(tmp_path / "other", of_classes(10), seed=2)

    def open_(data, run=None, *, test=None, share=None):
        seen = None if run is None else Opened(recipe, CONFIG, tmp_path / run, held_out=share).trained
        it = Opened(recipe, CONFIG, tmp_path / data, test and tmp_path / test, None if test is None else 0.0)
        it.weights = seen or split.Trained("")
        return it

    return open_


@pytest.mark.parametrize(
    ("data", "run", "how", "said"),
    [
        ("whole", "whole", {}, "what the run held out; 5 samples, never trained on"),
        ("whole", "whole", {"share": 0.0}, "the probes not fitted on it; 5 samples, all of them TRAINED ON"),
        ("parted", "parted", {}, "the data's own test split; 8 samples, never trained on"),
        ("whole", "parted", {}, "5 samples, all of them TRAINED ON"),
        ("parted", "whole", {}, "8 samples, never trained on"),
        ("other", "whole", {}, "3 samples of other data, with no copy of one that was trained on"),
        ("whole", "parted", {"test": "other"}, "other; 20 samples, never trained on"),
        ("parted", "whole", {"test": "whole"}, f"whole; 40 samples, 35 of them TRAINED ON; 32{COPIES}"),
        ("whole", None, {}, "unknown whether trained on: the weights do not say what they were trained on"),
    ],
)
def test_figures_say_whether_their_samples_were_trained_on(opened, data, run, how, said):
    assert opened(data, run, **how).labelled()[2].endswith(said)


def test_copies_of_training_pictures_in_a_test_part_are_counted(opened, tmp_path):
    pictures = sorted((tmp_path / "parted/train").rglob("*.png"))
    for picture in (pictures[0], pictures[-1]):
        shutil.copy(picture, tmp_path / "parted/test" / picture.parent.name / "a copy.png")
    assert opened("parted").labelled()[2].endswith(f"; 2{COPIES}")
    assert opened("parted", test="parted/test").labelled()[2].endswith(f"; 2{COPIES}")
    assert "COPIES" not in opened("whole", "whole").labelled()[2], "what is held out has none"


def test_probes_are_not_fitted_on_what_they_are_tested_on(opened):
    for it in (opened("whole", "whole"), opened("whole", "whole", share=0.0), opened("other", "whole")):
        train, test, _ = it.labelled()
        assert set(names(train)).isdisjoint(names(test)) and len(train) + len(test) in (40, 20)


def test_pictures_that_are_added_later_were_never_trained_on(opened, tmp_path):
    run = opened("whole").raw("train")  # trained on the whole below
    trained = Opened(run and opened("whole").recipe, CONFIG, tmp_path / "whole").trained
    write(tmp_path / "whole", of_classes(20, start=20))
    it = opened("whole")
    it.weights = trained
    train, test, how = it.labelled()
    assert how.endswith(f"{len(test)} samples, never trained on")
    assert (
        len(train) + len(test) == 80
        and not np.isin(keys_of(open_source(tmp_path / "whole"), "content"), trained.keys).all()
    )


def test_many_pictures_are_compared_by_their_fingerprint(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(split, "MANY", 2)
    assert opened("whole", "whole").labelled()[2].endswith("samples, never trained on")
    assert opened("whole", "whole", share=0.0).labelled()[2].endswith("all of them TRAINED ON")
    assert opened("other", "whole").labelled()[2].endswith("other data than the run was trained on")


def test_weights_that_a_run_started_from_count(train, tmp_path, opened):
    write(tmp_path / "data", of_classes(20))
    train("data", "first", "--held-out", "0")
    train("data", "second", "--init", "first")
    it = opened("data")
    it.weights = split.trained_on("second")
    assert it.labelled()[2].endswith("all of them TRAINED ON"), "by the first run"
    Tiny(RECIPE.preset("demo")).save_pretrained(tmp_path / "weights")
    train("data", "third", "--init", "weights")
    it = opened("data")
    it.weights = split.trained_on("third")
    assert it.labelled()[2].endswith("never trained on, unless by the weights that it started from")


def test_classes_of_one_picture_cannot_be_evaluated(opened, tmp_path):
    write(tmp_path / "ones", [f"{i}/1.png" for i in range(5)])
    with pytest.raises(DataError, match="give --test"):
        opened("ones").labelled()


@pytest.mark.parametrize("share", ["0.2", "0"])
def test_the_terminal_card_and_report_say_it(train, tmp_path, capsys, share):
    write(tmp_path / "data", of_classes(20))
    train("data", "run", "--held-out", share)
    line = ["evaluate", "run", "--data", "data", "--protocols", "knn", "--device", "cpu"]
    assert main({"tiny": RECIPE}, line) == 0
    said = "samples, never trained on" if share == "0.2" else "samples, all of them TRAINED ON"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "run/README.md").read_text() and said in (tmp_path / "run/report.html").read_text()


def test_embed_writes_all_pictures_of_a_run(train, tmp_path, capsys):
    write(tmp_path / "data", of_classes(20))
    train("data")
    assert main({"tiny": RECIPE}, ["embed", "run", "--data", "data", "--device", "cpu"]) == 0
    assert "40 features" in capsys.readouterr().out


# ---- groups: patients


def patients(folder, number=60, each=4, classes=("ill", "well")):
    """Pictures that show who it is and nothing else, and a class by lot for each patient."""
    rng, rows = np.random.default_rng(0), ["path,patient,label"]
    folder.mkdir()
    for patient in range(number):
        face, label = rng.integers(60, 196, (8, 8, 3)), classes[patient % 2]
        for shot in range(each):
            picture = np.clip(face + rng.integers(-20, 21, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"{patient}-{shot}.png")
            rows.append(f"{patient}-{shot}.png,p{patient},{label}")
    (folder / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder / "table.csv"


def evaluated(run, *more):
    line = ["evaluate", run, "--data", "data/table.csv", "--protocols", "knn", "linear", "--device", "cpu", *more]
    assert main({"tiny": RECIPE}, line) == 0
    with open(f"{run}/evaluation.json") as file:
        return json.load(file)


def test_a_split_by_picture_flatters_where_patients_look_alike_and_one_by_patient_does_not(train, tmp_path):
    table = patients(tmp_path / "data")
    assert "by a hash of their content" in train(table, "by-picture")
    assert "by a hash of their group" in train(table, "by-patient", "--group", "patient")
    flattered, honest = evaluated("by-picture"), evaluated("by-patient")
    raw = [result["rows"][2] for result in (flattered, honest)]
    assert [row["features"] for row in raw] == ["raw pixels"] * 2
    for figure in ("knn", "linear"):
        assert raw[0][figure] > 0.8, "it knows the patients"
        assert abs(raw[1][figure] - 0.5) < 0.25, "there is nothing else to know"
    assert honest["protocol"]["split"].startswith("what the run held out, by patient; ")
    assert honest["protocol"]["split"].endswith("never trained on")
    low, high = raw[1]["intervals"]["knn"]
    assert high - low > 0.3, "a dozen patients, whatever the number of their pictures"


def test_no_patient_is_on_both_sides_in_training_and_the_run_remembers_it(train, tmp_path):
    table = patients(tmp_path / "data")
    train(table, "run", "--group", "patient")
    assert stored()["split"]["group"] == "patient"
    seen = Opened(RECIPE, CONFIG, table)
    seen.weights = split.trained_on("run")
    sides = [{name.split("-")[0] for name in names(seen.raw(part))} for part in ("train", "test")]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 60
    train(table, "run")  # resumed without the flag
    rows = table.read_text().split("\n")  # more pictures of all patients
    for row in rows[1::4]:
        patient, label = row.split(",")[1:]
        write(tmp_path / "data", [f"{patient}-new.png"], seed=1)
        rows.append(f"{patient}-new.png,{patient},{label}")
    table.write_text("\n".join(rows))
    later = Opened(RECIPE, CONFIG, table)
    later.weights = split.trained_on("run")
    tested = {name.removeprefix("p").split("-")[0] for name in names(later.raw("test"))}
    assert tested == sides[1]


def test_patients_of_test_data_that_lie_elsewhere_are_looked_for(train, tmp_path):
    table = patients(tmp_path / "data")
    train(table, "run", "--group", "patient")
    lines = table.read_text().split("\n")
    (tmp_path / "data/test.csv").write_text("\n".join([lines[0], *lines[1::4][:10], *lines[2::4][:10]]))
    assert (
        "10 groups of the test data are ON BOTH SIDES"
        in evaluated("run", "--test", "data/test.csv")["protocol"]["split"]
    )


@pytest.mark.parametrize(("group", "said"), [("patent", "Did you mean patient"), ("path", "")])
def test_a_column_that_is_not_there_is_named(tmp_path, monkeypatch, capsys, group, said):
    monkeypatch.chdir(tmp_path)
    patients(tmp_path / "data", 4, 2)
    line = ["train", "--data", "data/table.csv", "--group", group, "--out", "run", *SHORT]
    assert main({"tiny": RECIPE}, line) == (2 if said else 0)
    assert said in capsys.readouterr().err
    line = ["train", "--data", "data", "--group", "patient", "--out", "other", *SHORT]
    assert main({"tiny": RECIPE}, line) == 2
    assert "give a .csv with the columns path and patient" in capsys.readouterr().err


# ---- findings


def test_findings_are_read_from_one_column_or_from_several(tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(5)])
    rows = ["a|b,1,0.0,x", "a,1,,y", "|,0,0,x", ",-1,1,y", "b | c,0,1,x"]
    (tmp_path / "t.csv").write_text(
        "\n".join(["path,label,A,B,kind", *(f"{i}.png,{row}" for i, row in enumerate(rows))])
    )
    several = open_source(tmp_path / "t.csv")
    assert several.classes == ["a", "b", "c"]
    assert several.labels.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [-1, -1, -1], [0, 1, 1]]
    columns = open_source(f"{tmp_path}/t.csv?label=A,B")
    assert columns.classes == ["A", "B"]
    assert columns.labels.tolist() == [[1, 0], [1, -1], [0, 0], [-1, 1], [0, 1]]
    assert open_source(f"{tmp_path}/t.csv?label=kind").labels.tolist() == [0, 1, 0, 1, 0]
    for columns, said in (("A,kind", "row 2 of column 'kind' holds 'x'"), ("A,C", "has no column 'C'")):
        with pytest.raises(DataError, match=said):
            open_source(f"{tmp_path}/t.csv?label={columns}")


def test_findings_are_measured_by_auroc_in_terminal_card_report_and_file(train, tmp_path, capsys):
    table = patients(tmp_path / "data", classes=("ill|old", "old|"))
    train(table, "run", "--group", "patient")
    line = ["evaluate", "run", "--data", "data/table.csv", "--device", "cpu"]
    assert main({"tiny": RECIPE}, line) == 0
    said = capsys.readouterr().out
    assert "mean AUROC of 2 findings in % on table.csv" in said and "linear probe on a share of the labels" in said
    with open("run/evaluation.json") as file:
        row = json.load(file)["rows"][0]
    assert row["details"]["linear"]["each"]["old"]["auroc"]["mean"] is None, "all have it"
    assert row["linear"] == row["details"]["linear"]["each"]["ill"]["auroc"]["mean"]
    assert [point["share"] for point in row["details"]["curve"]] == [0.01, 0.05, 0.1, 1.0]
    assert row["details"]["curve"][-1]["mean"] == row["linear"]
    card, report = (tmp_path / "run/README.md").read_text(), (tmp_path / "run/report.html").read_text()
    assert "Mean AUROC of the findings in %" in card and "| ill |" in card and "type: roc_auc" in card
    assert "Linear probe by share of the labels" in report and "<th>ill</th>" in report
