"""An index of images: what an update does, a kill in its middle, and what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_clip import ImageIndex
from ssl_clip import index as index_module
from ssl_clip.index import fingerprint
from ssl_clip.index_files import IndexMismatch, locked, read_meta, write_meta
from ssl_clip.search import write_page
from ssl_core.errors import DataError
from ssl_train.data.images import read_image


def test_an_index_finds_an_image_by_itself_and_survives_being_opened(tmp_path, model, photos):
    clip, folder = model(), photos(tmp_path / "photos")
    index = ImageIndex.build(clip, folder, tmp_path / "my.index")
    assert (len(index), index.last_update.added) == (5, 5)
    for again in (index, ImageIndex.open(clip, tmp_path / "my.index")):
        [(path, score), *_] = again.search(read_image(folder / "3.png"), top_k=2)
        assert Path(path).name == "3.png" and score == pytest.approx(1, abs=0.02)
    scores = [score for _, score in index.search("a red picture", top_k=9)]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_an_update_takes_in_what_is_new_changed_gone_and_unreadable(tmp_path, model, photos):
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


def test_linked_folders_and_names_of_any_bytes_are_indexed_and_found(tmp_path, model, photos):
    clip, folder = model(), photos(tmp_path / "photos")
    linked = photos(tmp_path / "elsewhere")
    (folder / "link").symlink_to(linked)
    odd = os.fsdecode(b"b\xe9\x1b[31m.png")
    try:
        Image.new("RGB", (40, 40), (1, 2, 3)).save(folder / odd)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    count = len(list(linked.iterdir()))
    index = ImageIndex.build(clip, folder, folder / "my.index")
    assert len(index) == 2 * count + 1
    found = {path for path, _ in ImageIndex.open(clip, folder / "my.index").search("a", 100)}
    assert str(folder / odd) in found
    assert {str(folder / "link" / file.name) for file in linked.iterdir()} <= found
    write_page(tmp_path / "found.html", "a", [(str(folder / odd), 0.5)])
    assert "b\\udce9" in (tmp_path / "found.html").read_text(encoding="utf-8")


def test_a_killed_update_goes_on_where_it_stopped(tmp_path, monkeypatch, model, photos):
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


def test_rows_that_are_left_behind_are_thrown_away(tmp_path, model, photos):
    clip, folder = model(), photos(tmp_path / "photos", 8)
    ImageIndex.build(clip, folder, tmp_path / "my.index")
    for i in range(4):
        (folder / f"{i}.png").unlink()
    index = ImageIndex.build(clip, folder, tmp_path / "my.index")
    assert (index.files.rows, len(index), index.files.meta["number"]) == (4, 4, 2)
    assert {Path(path).name for path, _ in index.search("red", 9)} == {f"{i}.png" for i in range(4, 8)}
    assert sorted(path.name for path in (tmp_path / "my.index").iterdir()) == [
        ".lock",
        "files-2.jsonl",
        "index.json",
        "vectors-2.f16",
    ]


def test_an_index_of_another_model_another_folder_or_none_is_refused(tmp_path, model, photos):
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
    with (tmp_path / "my.index" / "files-1.jsonl").open("r+") as lines:
        lines.write("nonsense")
    with pytest.raises(IndexMismatch, match="line 1 is damaged"):
        ImageIndex.open(clip, tmp_path / "my.index")


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"heads": 4}, False),
        ({"layer_norm_eps": 1e-6}, False),
        ({"text_pool": "argmax"}, False),
        ({"eos_token_id": 598}, False),
        ({"pos_interp": "antialias"}, False),
        ({"crop_pct": 0.9}, False),
        ({"epochs": 7, "crop_scale": (0.5, 1.0)}, True),
    ],
)
def test_an_index_belongs_to_its_weights_and_to_how_they_are_used(changes, same, model):
    assert (fingerprint(model(**changes)) == fingerprint(model())) == same


def test_lists_that_faiss_wrote_are_passed_over_where_it_is_missing(tmp_path, monkeypatch, model, photos):
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


def test_beyond_the_limit_lists_answer_nearly_as_the_exact_search(tmp_path, monkeypatch, model, photos):
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


def test_an_index_that_is_being_updated_is_refused_and_stays_as_it_is(tmp_path, model, photos):
    clip, folder, out = model(), photos(tmp_path / "photos"), tmp_path / "my.index"
    index = ImageIndex.build(clip, folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    Image.new("RGB", (9, 9)).save(folder / "new.png")
    with locked(out):
        for update in (lambda: ImageIndex.build(clip, folder, out), index.update):
            with pytest.raises(IndexMismatch, match="being updated by another process"):
                update()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert index.update().added == 1


def test_an_update_sees_what_another_process_has_added(tmp_path, model, photos):
    clip, folder, out = model(), photos(tmp_path / "photos"), tmp_path / "my.index"
    first = ImageIndex.build(clip, folder, out)
    Image.new("RGB", (9, 9), "red").save(folder / "new.png")
    ImageIndex.build(clip, folder, out)
    assert first.update().added == 0, "the other one has it"
    assert len(first) == 6 and len({path for path, _ in first.search("red", 9)}) == 6


def test_a_flipped_bit_is_an_error_and_never_another_result(tmp_path, model, photos):
    clip, folder, out = model(), photos(tmp_path / "photos"), tmp_path / "my.index"
    ImageIndex.build(clip, folder, out)
    right = ImageIndex.open(clip, out).search("red", 9)
    chance, noticed = random.Random(0), 0
    for name in ("index.json", "files-1.jsonl", "vectors-1.f16"):
        for _ in range(40):
            damaged = tmp_path / "damaged"
            shutil.copytree(out, damaged)
            content = bytearray((damaged / name).read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            (damaged / name).write_bytes(content)
            try:
                assert ImageIndex.open(clip, damaged).search("red", 9) == right
            except IndexMismatch as error:
                assert str(damaged) in str(error) and "again" in str(error)
                noticed += 1
            shutil.rmtree(damaged)
    assert noticed > 100, "the rest are blanks of index.json, which change nothing"


@pytest.mark.parametrize("size", [0, 10, -1, "line"])
def test_a_finished_index_that_is_cut_off_is_an_error_and_never_fewer_images(size, tmp_path, model, photos):
    clip, out = model(), tmp_path / "my.index"
    index = ImageIndex.build(clip, photos(tmp_path / "photos"), out)
    content = index.files.lines.read_bytes()
    index.files.lines.write_bytes(content[: content.rstrip().rindex(b"\n") + 1 if size == "line" else size])
    with pytest.raises(IndexMismatch, match=r"files-1.jsonl is missing or cut off: delete .* and index again"):
        ImageIndex.open(clip, out)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim", "8"),
        ("dim", None),
        ("number", "1"),
        ("root", 3),
        ("weights", 1),
        ("lists", 0),
        ("bytes", None),
        ("format", 1),
    ],
)
def test_an_index_with_a_wrong_value_is_refused(name, value, tmp_path, model, photos):
    clip, out = model(), tmp_path / "my.index"
    ImageIndex.build(clip, photos(tmp_path / "photos", 1), out)
    write_meta(out, {**read_meta(out), name: value})
    with pytest.raises(IndexMismatch, match="cannot be used"):
        ImageIndex.open(clip, out)
    (out / "index.json").write_text(json.dumps([name, value]))
    with pytest.raises(IndexMismatch, match="cannot be used"):
        ImageIndex.open(clip, out)


def test_damaged_lists_are_passed_over_for_exact_search_and_made_again(tmp_path, monkeypatch, model, photos):
    pytest.importorskip("faiss")
    monkeypatch.setattr(index_module, "EXACT", 3)
    clip, out = model(), tmp_path / "my.index"
    index = ImageIndex.build(clip, photos(tmp_path / "photos", 64), out)
    lists = index.files.lists
    content = bytearray(lists.read_bytes())
    content[len(content) // 2] ^= 1
    lists.write_bytes(content)
    with pytest.warns(UserWarning, match="search is exact"):
        found = ImageIndex.open(clip, out).search("red", 5)
    assert found == index.search("red", 5, exact=True)
    with pytest.warns(UserWarning, match="search is exact"):
        ImageIndex.build(clip, tmp_path / "photos", out)
    assert ImageIndex.open(clip, out).files.lists_are_whole()
