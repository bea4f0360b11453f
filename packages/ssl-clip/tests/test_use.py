"""What one does with a model: classify, search, map; and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ssl_clip import CLIP, CLIPConfig, ImageIndex, Tokenizer, ZeroShotClassifier, embedding_map, modality_gap, retrieval
from ssl_clip import index as index_module
from ssl_clip.classify import top_accuracies
from ssl_clip.config import RECIPES
from ssl_clip.index import IndexMismatch, build_lists, exact_search, fingerprint
from ssl_clip.map import centred, sample_pairs
from ssl_clip.tokenizer import TextError
from ssl_clip.verbs import VERBS
from ssl_core.errors import BadSample, DataError, InputError
from ssl_train.cli.main import main

CONFIG = CLIPConfig(
    image_size=16, patch_size=8, dim=16, depth=1, heads=2, text_dim=16, text_depth=1, text_heads=2, embed_dim=8,
    vocab_size=600, eos_token_id=599, context_length=12,
)  # fmt: skip
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def model(**changes) -> CLIP:
    torch.manual_seed(0)
    clip = CLIP(dataclasses.replace(CONFIG, **changes)).eval()
    clip.tokenizer = tokenizer()
    return clip


@functools.cache
def tokenizer() -> Tokenizer:
    """One for all: which of equally frequent pairs is merged first is open, and differs between trainings."""
    return Tokenizer.trained(["a photo of a red green blue picture", "close-up small large"], 600)


def photos(folder: Path, number: int = 5) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def images(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- the model


def test_embeddings_have_length_one_and_logits_are_scaled():
    clip = model()
    with torch.no_grad():
        image, text = clip.encode_image(images()), clip.encode_text(["red", "a green picture"])
        assert torch.allclose(image.norm(dim=1), torch.ones(3)) and torch.allclose(text.norm(dim=1), torch.ones(2))
        assert torch.allclose(clip.logits(images(), ["red", "a green picture"]), image @ text.T / 0.07, atol=1e-5)
    sigmoid = model(loss="siglip")
    with torch.no_grad():
        logits = sigmoid.logits(images(), "red")
        cosine = sigmoid.encode_image(images()) @ sigmoid.encode_text("red").T
        assert torch.allclose(logits, 10 * cosine - math.log(32767), atol=1e-5)


def test_what_stands_behind_the_end_of_a_text_changes_nothing():
    clip = model()
    ids = clip.tokenize("a red picture")
    changed = ids.clone()
    changed[0, 6:] = 7
    with torch.no_grad():
        assert torch.equal(clip.encode_text(ids), clip.encode_text(changed))
        changed[0, 2] = 7
        assert not torch.equal(clip.encode_text(ids), clip.encode_text(changed))


def test_the_scale_stays_at_or_below_100():
    clip = model()
    with torch.no_grad():
        clip.logit_scale.fill_(9.0)
    clip.after_step(0.5)
    assert clip.logit_scale.exp().item() == pytest.approx(100)


def test_bad_texts_are_told():
    clip = model()
    with pytest.raises(TextError, match="is empty"):
        clip.encode_text(["red", " "])
    with pytest.raises(TextError, match="tokens, 10 fit"):
        clip.encode_text("red " * 30)
    clip.tokenizer = None
    with pytest.raises(InputError, match="this model has no tokenizer"):
        clip.encode_text("red")
    with pytest.raises(ValueError, match=r"input_ids must be integers \(b, up to 12\)"):
        clip.encode_text(torch.zeros(1, 13, dtype=torch.int64))


def test_a_resnet_does_not_accumulate():
    clip = CLIP(
        dataclasses.replace(CONFIG, tower="resnet", image_size=32, patch_size=32, dim=8, heads=2, stages=(1, 1, 1, 1))
    )
    part = {"views": [torch.zeros(2, 3, 32, 32)], "input_ids": torch.full((2, 12), 599)}
    with pytest.raises(InputError, match="batch norm sees each micro-batch alone"):
        clip({"micro_batches": [part, part]}, 0.0)


# ---------------------------------------------------------------- classify


def test_directions_are_means_over_templates_of_length_one():
    clip = model()
    classifier = ZeroShotClassifier(clip, ["red", "blue"], ["a {}", "photo of {}"])
    with torch.no_grad():
        mean = F.normalize((clip.encode_text("a blue") + clip.encode_text("photo of blue"))[0], dim=0)
    assert torch.allclose(classifier.weights[:, 1], mean, atol=1e-6)
    proba = classifier.predict_proba(images())
    assert proba.shape == (3, 2) and torch.allclose(proba.sum(1), torch.ones(3))
    logits = clip.encode_image(images()) @ classifier.weights / 0.07
    assert torch.allclose(proba, logits.softmax(1), atol=1e-6)


def test_under_the_sigmoid_loss_labels_are_judged_one_by_one():
    clip = model(loss="siglip")
    proba = ZeroShotClassifier(clip, ["red", "blue"]).predict_proba(images())
    assert (proba.sum(1) < 0.9).all(), "with its first bias neither label is likely"


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        (["red"], None, "two or more"),
        (["red", "red"], None, "different"),
        (["a", "b"], ["photo"], "has one {}"),
        (["a", "b"], [], "none"),
    ],
)
def test_labels_and_templates_that_make_no_classifier_are_refused(labels, templates, message):
    with pytest.raises(InputError, match=message):
        ZeroShotClassifier(model(), labels, templates)


def test_accuracies_by_hand():
    scores = torch.eye(6)[[0, 1, 1, 5]] + torch.arange(6) / 100
    found = top_accuracies(scores, torch.tensor([0, 1, 2, 4]))
    assert found == {"top1": 0.5, "top5": 1.0, "mean_per_class": 0.5}


# ---------------------------------------------------------------- retrieval


def plain_ranks(scores: list, right: list[set[int]]) -> list[int]:
    ranks = []
    for row, own in zip(scores, right, strict=True):
        best = max(row[j] for j in own)
        ranks.append(1 + sum(j not in own and score >= best for j, score in enumerate(row)))
    return ranks


def test_ranks_equal_plain_python_with_several_right_answers_and_ties(monkeypatch):
    from ssl_clip import measure

    monkeypatch.setattr(measure, "ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-2, 3, (n, 3), generator=generator).float() for n in (10, 14))
    pairs = torch.tensor([(i, j) for i in range(10) for j in (i, (i * 3 + 5) % 14)])
    right = [{j for a, j in pairs.tolist() if a == i} for i in range(10)]
    ranks = plain_ranks((image @ text.T).tolist(), right)
    found = retrieval(image, text, pairs)["image_to_text"]
    assert found["R@1"] == pytest.approx(sum(rank <= 1 for rank in ranks) / 10)
    assert found["R@5"] == pytest.approx(sum(rank <= 5 for rank in ranks) / 10)
    assert found["mean_rank"] == pytest.approx(sum(ranks) / 10)
    assert found["chance_R@1"] == pytest.approx(2 / 14)
    back = [{i for i, b in pairs.tolist() if b == j} for j in range(14)]
    asked = [j for j in range(14) if back[j]]
    expected = plain_ranks([(text @ image.T)[j].tolist() for j in asked], [back[j] for j in asked])
    assert retrieval(image, text, pairs)["text_to_image"]["mean_rank"] == pytest.approx(sum(expected) / len(asked))


def test_a_constant_model_finds_nothing():
    same = torch.ones(20, 4)
    found = retrieval(same, same, torch.arange(20)[:, None].expand(-1, 2))
    assert found["image_to_text"]["R@10"] == 0 and found["image_to_text"]["median_rank"] == 20


# ---------------------------------------------------------------- search


def test_an_index_finds_an_image_by_itself_and_survives_being_opened(tmp_path):
    clip, folder = model(), photos(tmp_path / "photos")
    index = ImageIndex.build(clip, folder, tmp_path / "my.index")
    assert (len(index), index.last_update.added) == (5, 5)
    from ssl_train.data.images import read_image

    for again in (index, ImageIndex.open(clip, tmp_path / "my.index")):
        [(path, score), *_] = again.search(read_image(folder / "3.png"), top_k=2)
        assert Path(path).name == "3.png" and score == pytest.approx(1, abs=0.02)
    scores = [score for _, score in index.search("a red picture", top_k=9)]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_an_update_takes_in_what_is_new_changed_gone_and_unreadable(tmp_path):
    clip, folder = model(), photos(tmp_path / "photos")
    ImageIndex.build(clip, folder, tmp_path / "my.index")
    (folder / "0.png").unlink()
    (folder / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(folder / "1.png")
    (folder / "deep").mkdir()
    Image.new("RGB", (30, 9), "red").save(folder / "deep" / "new.jpg")
    index = ImageIndex.build(clip, folder, tmp_path / "my.index")
    update = index.last_update
    assert (update.added, update.changed, update.removed, update.total) == (2, 1, 1, 5)
    assert [path for path, _ in update.unreadable] == ["broken.png"]
    found = {os.path.relpath(path, folder) for path, _ in index.search("red", top_k=99)}
    assert found == {"1.png", "2.png", "3.png", "4.png", "deep/new.jpg"}
    again = ImageIndex.build(clip, folder, tmp_path / "my.index").last_update
    assert (again.added, again.changed, again.removed) == (0, 0, 0), "nothing happened, nothing is done"


def test_a_killed_update_goes_on_where_it_stopped(tmp_path, monkeypatch):
    clip, folder, out = model(), photos(tmp_path / "photos"), tmp_path / "my.index"
    encode, calls = clip.encode_image, []

    def dies(batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(batch)

    monkeypatch.setattr(clip, "encode_image", dies)
    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(clip, folder, out, batch_size=2)
    [files], [vectors] = out.glob("files-*"), out.glob("vectors-*")
    with files.open("a") as lines, vectors.open("ab") as rows:  # as a kill in the middle of a write leaves them
        lines.write('{"path": "4.p')
        rows.write(b"\0" * 7)
    monkeypatch.setattr(clip, "encode_image", encode)
    index = ImageIndex.build(clip, folder, out, batch_size=2)
    assert (index.last_update.added, len(index)) == (1, 5)
    whole = ImageIndex.build(clip, folder, tmp_path / "other.index")
    for query in ("red", "blue"):
        ours, theirs = index.search(query, 5), whole.search(query, 5)
        assert [path for path, _ in ours] == [path for path, _ in theirs]


def test_rows_that_are_left_behind_are_thrown_away(tmp_path):
    clip, folder = model(), photos(tmp_path / "photos", 8)
    ImageIndex.build(clip, folder, tmp_path / "my.index")
    for i in range(4):
        (folder / f"{i}.png").unlink()
    index = ImageIndex.build(clip, folder, tmp_path / "my.index")
    assert (index.rows, len(index), index.meta["number"]) == (4, 4, 2)
    assert {Path(path).name for path, _ in index.search("red", 9)} == {f"{i}.png" for i in range(4, 8)}
    assert sorted(path.name for path in (tmp_path / "my.index").iterdir()) == [
        "files-2.jsonl",
        "index.json",
        "vectors-2.f16",
    ]


def test_an_index_of_another_model_another_folder_or_none_is_refused(tmp_path):
    clip, folder = model(), photos(tmp_path / "photos")
    ImageIndex.build(clip, folder, tmp_path / "my.index", weights="runs/clip")
    other = model()
    with torch.no_grad():
        other.text_projection.weight.add_(0.1)
    with pytest.raises(IndexMismatch, match=r"made by another model \(runs/clip\)"):
        ImageIndex.open(other, tmp_path / "my.index")
    with pytest.raises(IndexMismatch, match="made by another model"):
        ImageIndex.build(other, folder, tmp_path / "my.index")
    with pytest.raises(IndexMismatch, match="indexes .*photos, not .*others"):
        ImageIndex.build(clip, photos(tmp_path / "others"), tmp_path / "my.index")
    with pytest.raises(IndexMismatch, match="is no index"):
        ImageIndex.open(clip, tmp_path)
    with pytest.raises(IndexMismatch, match="is not empty and holds no index"):
        ImageIndex.build(clip, folder, tmp_path / "others")
    with pytest.raises(DataError, match="is no folder"):
        ImageIndex.build(clip, tmp_path / "nowhere", tmp_path / "new.index")
    (tmp_path / "my.index" / "files-1.jsonl").write_text("nonsense\n")
    with pytest.raises(IndexMismatch, match="line 1 is damaged"):
        ImageIndex.open(clip, tmp_path / "my.index")


@pytest.mark.parametrize(
    ("changes", "same"),
    [({"heads": 4}, False), ({"layer_norm_eps": 1e-6}, False), ({"text_pool": "argmax"}, False),
     ({"eos_token_id": 598}, False), ({"pos_interp": "antialias"}, False), ({"crop_pct": 0.9}, False),
     ({"epochs": 7, "crop_scale": (0.5, 1.0)}, True)],
)  # fmt: skip
def test_an_index_belongs_to_its_weights_and_to_how_they_are_used(changes, same, tmp_path):
    assert (fingerprint(model(**changes)) == fingerprint(model())) == same


def test_lists_that_faiss_wrote_are_passed_over_where_it_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(index_module, "EXACT", 3)
    clip = model()
    with_lists = ImageIndex.build(clip, photos(tmp_path / "photos", 40), tmp_path / "my.index")
    exact = with_lists.search("red", 5, exact=True)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert ImageIndex.open(clip, tmp_path / "my.index").search("red", 5) == exact
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "photos" / "new.png")
    again = ImageIndex.build(clip, tmp_path / "photos", tmp_path / "my.index")
    assert not (tmp_path / "my.index" / "lists-1.faiss").exists()
    assert len(again.search("red", 99)) == 41


def test_beyond_the_limit_lists_answer_nearly_as_the_exact_search(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(index_module, "EXACT", 3)
    clip = model()
    index = ImageIndex.build(clip, photos(tmp_path / "photos", 40), tmp_path / "my.index")
    assert (tmp_path / "my.index" / "lists-1.faiss").is_file()
    ours, exact = (index.search("red", 5, exact=exact) for exact in (False, True))
    assert [path for path, _ in ours] == [path for path, _ in exact]
    (tmp_path / "photos" / "7.png").unlink()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "photos" / "8.png")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "photos" / "new.png")
    index = ImageIndex.build(clip, tmp_path / "photos", tmp_path / "my.index")
    found = {Path(path).name for path, _ in index.search("red", 99)}
    assert found == {Path(path).name for path, _ in index.search("red", 99, exact=True)}
    assert "new.png" in found and "7.png" not in found and len(found) == 40


def test_exact_search_in_chunks_is_a_sort(monkeypatch):
    monkeypatch.setattr(index_module, "CHUNK", 7)
    rng = np.random.default_rng(0)
    matrix, queries = rng.normal(size=(50, 6)).astype(np.float16), rng.normal(size=(3, 6)).astype(np.float32)
    live = np.arange(1, 50, 2)
    rows, scores = exact_search(matrix, queries, 4, live)
    expected = queries @ matrix[live].astype(np.float32).T
    assert np.array_equal(rows, live[np.argsort(-expected, 1)[:, :4]])
    assert np.allclose(scores, -np.sort(-expected, 1)[:, :4], atol=1e-5)


def test_lists_recall_most_of_clustered_vectors():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 16))
    matrix = centres[rng.integers(50, size=4000)] + 0.3 * rng.normal(size=(4000, 16))
    matrix = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float16)
    queries = matrix[:100].astype(np.float32)
    _, found = build_lists(matrix, np.arange(4000), probes=16).search(queries, 10)
    exact, _ = exact_search(matrix, queries, 10, np.arange(4000))
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) > 0.8


# ---------------------------------------------------------------- map


def test_the_gap_is_the_distance_of_the_means_and_goes_when_they_are_taken_away():
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(200, 8, generator=generator), dim=1)
    image = F.normalize(text + 2 * F.normalize(torch.ones(8), dim=0), dim=1)
    assert modality_gap(image, text) == pytest.approx((image.mean(0) - text.mean(0)).norm().item())
    assert modality_gap(image, text) > 0.5 > 0.1 > modality_gap(centred(image), centred(text))


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("centre", [False, True])
def test_a_map_shows_images_and_texts(method, centre, tmp_path):
    pytest.importorskip("matplotlib")
    figure = embedding_map(model(), images(4), ["red", "green", "blue"], method, centre=centre)
    figure.savefig(tmp_path / "map.png")
    title = figure.axes[0].get_title()
    assert title.startswith("modality gap") and ("taken away" in title) == centre
    assert {text.get_text() for text in figure.axes[0].texts} == {"red", "green", "blue"}
    with pytest.raises(InputError, match="needs four"):
        embedding_map(model(), images(1), ["red"], method)


# ---------------------------------------------------------------- commands


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, colour in COLOURS.items():
        (tmp_path / "colours" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 20), colour).save(tmp_path / "colours" / name / f"{i}.png")
    return model().save_pretrained(tmp_path / "runs" / "clip")


def typed(*arguments: str) -> int:
    try:
        return main(RECIPES, list(arguments), verbs=VERBS)
    except SystemExit as error:  # the parser of flags ends the process itself
        assert isinstance(error.code, int)
        return error.code


def test_classify_prints_a_table_and_measures_a_folder(run, capsys):
    assert (
        typed("classify", "colours/red/0.png", "colours/blue/0.png", "--labels", "red", "blue", "--device", "cpu") == 0
    )
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["red", "blue"] and len(table) == 3 and table[1].count("%") == 2
    Path("templates.txt").write_text("a {}\na photo of a {}\n")
    assert typed("classify", "--data", "colours", "--templates", "templates.txt", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "top1" in shown and "mean per class" in shown and "2 templates" in shown
    with Image.open("confusion.png") as picture:
        assert picture.width > 100


def test_index_and_search_find_and_write_a_page(run, capsys):
    for _ in range(2):
        assert typed("index", "colours", "--out", "my.index", "--device", "cpu") == 0
    assert "0 new, 0 changed, 0 gone, 0 unreadable; 9 images" in capsys.readouterr().out
    assert typed("search", "my.index", "a <red> picture", "--top-k", "3", "--device", "cpu") == 0
    assert capsys.readouterr().out.count(".png") == 3
    page = Path("search.html").read_text()
    assert page.count("<img") == 3 and "a &lt;red&gt; picture" in page and "<red>" not in page
    assert typed("search", "my.index", "--image", "colours/green/1.png", "--device", "cpu") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "green" in first and float(first.split()[0]) > 0.98


def test_map_prints_the_gap(run, capsys):
    pytest.importorskip("matplotlib")
    command = (
        "map",
        "--data",
        "colours",
        "--texts",
        "red",
        "blue",
        "--number",
        "5",
        "--method",
        "pca",
        "--device",
        "cpu",
    )
    assert typed(*command, "--centre") == 0
    assert "modality gap" in capsys.readouterr().out and Path("map.png").is_file()


def test_map_leaves_out_what_is_unreadable_and_needs_scikit_learn_for_tsne_alone(run, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [f"colours/{name}/{i}.png,a {name} picture" for name in COLOURS for i in range(3)]
    Path("pairs.csv").write_text("\n".join(["path,caption", *rows]))
    Path("colours/red/0.png").write_text("no picture")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert typed("map", "--data", "pairs.csv", "--method", "pca", "--device", "cpu") == 0
    assert "8 images and 3 texts" in capsys.readouterr().out
    assert typed("map", "--data", "pairs.csv", "--device", "cpu") == 2
    assert 'pictures need sklearn: pip install "ssl-clip[viz]"' in capsys.readouterr().err


class Captioned:
    """Grey pictures, of which `captions` says what each has."""

    def __init__(self, captions: dict[int, str]) -> None:
        self.captions = captions

    def __len__(self) -> int:
        return 9

    def load(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": torch.full((3, 16, 16), index, dtype=torch.uint8)}

    def texts(self, index: int) -> list[str]:
        if index not in self.captions:
            raise BadSample("its caption is missing")
        return [self.captions[index]]


def test_a_map_draws_images_that_have_a_caption_and_each_text_once():
    images, texts = sample_pairs(Captioned({1: "grey", 4: "dark", 7: "grey"}), CONFIG, 20)
    assert sorted(images[:, 0, 0, 0].tolist()) == [1, 4, 7] and sorted(texts) == ["dark", "grey"]
    assert len(sample_pairs(Captioned({1: "grey", 4: "dark", 7: "grey"}), CONFIG, 2)[0]) == 2
    with pytest.raises(DataError, match="no readable image has a caption"):
        sample_pairs(Captioned({}), CONFIG, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify",), "give images to classify, or --data"),
        (("classify", "colours/red/0.png", "--labels", "red"), "two or more"),
        (("classify", "nowhere.png", "--labels", "red", "blue"), "nowhere.png cannot be read: no such file"),
        (("classify", "--data", "colours/red"), "has no classes"),
        (("classify", "--data", "colours", "--labels", "a", "b"), "2 labels for 3 classes"),
        (("index", "nowhere"), "nowhere is no folder"),
        (("search", "nowhere", "red"), "nowhere is no index"),
        (("search", "my.index"), "give a text"),
        (("search", "my.index", "red " * 30), "tokens, 10 fit"),
        (("search", "my.index", " "), "is empty"),
        (("search", "my.index", "red", "--top-k", "0"), "ask for at least one image"),
        (("search", "my.index", "--image", "nowhere.png"), "nowhere.png cannot be read"),
        (("map", "--data", "colours"), "has no captions: name the texts"),
        (("train", "--data", "colours", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2"), "have no captions"),
        (("train", "--epochs", "1", "--warmup-epochs", "2"), "must be shorter than the run"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_and_exit_code_2(arguments, message, run, capsys):
    assert typed("index", "colours", "--out", "my.index", "--device", "cpu") == 0
    assert typed(*arguments, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
