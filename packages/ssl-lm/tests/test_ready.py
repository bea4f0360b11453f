"""`train --data texts/`: texts are prepared in the run folder, once, whole, for these settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_text import write_text

from ssl_core.errors import InputError
from ssl_lm import GPT, GPTConfig, evaluate, prepare_text, train
from ssl_lm import prepare as prepare_module
from ssl_lm.config import RECIPES, gpt2
from ssl_lm.ready import LARGEST, SMALLEST, ready, vocabulary
from ssl_lm.shards import META
from ssl_lm.texts import list_files
from ssl_lm.verbs import VERBS
from ssl_testing import children
from ssl_train.asked import Asked
from ssl_train.cli.main import main
from ssl_train.options import RunOptions

SIZES = ["--context", "16", "--dim", "16", "--depth", "1", "--heads", "2", "--device", "cpu", "--workers", "0"]
OPTIONS = RunOptions(device="cpu", workers=0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `texts` of eight documents, below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for i in range(8):
        (tmp_path / "texts" / f"{i}.{'md' if i % 2 else 'txt'}").write_text(write_text(40, seed=i))
    return tmp_path / "texts"


def trained(*flags: str, data: str = "texts/", out: str = "run") -> int:
    return main(RECIPES, ["train", "--data", data, "--out", out, "--max-steps", "2", *SIZES, *flags], VERBS)


def files(place: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, but not of the lock."""
    return {
        file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in place.iterdir() if file.name[0] != "."
    }


@pytest.mark.parametrize(
    ("method", "flags"),
    [("gpt", []), ("bert", []), ("t5", ["--decoder-depth", "1", "--head-dim", "8", "--hidden", "16"])],
    ids=lambda value: str(value)[:4],
)
def test_a_folder_of_texts_is_prepared_and_trained_on(method, flags, folder, capsys):
    assert trained("--method", method, *flags) == 0
    shown = capsys.readouterr().out
    size = sum(r["bytes"] for r in json.loads((folder.parent / "run/data" / META).read_text())["splits"]["train"])
    tokens = json.loads((folder.parent / "run/run.json").read_text())["config"]["vocab_size"]
    assert (
        400 < tokens <= 512
        and re.search(rf"vocab_size +{tokens} +twice", shown)
        and f"twice the root of {size:,} bytes of text" in shown
    )
    assert "test: " in shown and "--vocab-size" in shown
    assert json.loads((folder.parent / "run/run.json").read_text())["data"] == "texts/"
    assert not (folder.parent / "run/.data.part").exists()


def test_a_resumed_run_keeps_its_tokens_and_says_that_the_texts_have_changed(folder, capsys, recwarn):
    assert trained() == 0
    place = folder.parent / "run" / "data"
    before = files(place)
    assert trained() == 0, "the texts are as they were"
    assert files(place) == before and not recwarn.list
    (folder / "0.txt").write_text("other words")
    with pytest.warns(
        UserWarning, match="texts in .*texts have changed since this run began: it goes on with the tokens"
    ):
        assert trained(data="./texts") == 0
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="cannot be compared with what it was made of .there is no"):
        assert trained() == 0
    assert files(place) == before
    capsys.readouterr()
    folder.mkdir()
    (folder.parent / "more").mkdir()
    assert trained(data="more") == 2, "other texts are another run"
    assert "data: 'texts/' → 'more'" in capsys.readouterr().err


def test_what_was_prepared_for_a_run_that_has_not_begun_gives_way(folder):
    asked = Asked(typed={"vocab_size": 500})
    place, choices = ready("texts", Path("run"), asked)
    assert place == Path("run/data") and choices == []
    before = files(place)
    ready(folder, Path("run"), asked)
    assert files(place) == before, "the same texts, by another name"
    ready("texts", Path("run"), Asked(typed={"vocab_size": 450}))
    assert json.loads((place / META).read_text())["vocab_size"] == 450
    (folder / "0.txt").write_text(write_text(90, seed=99))
    ready("texts", Path("run"), asked)
    assert json.loads((place / META).read_text())["vocab_size"] == 500


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_data_and_goes_on(folder, monkeypatch):
    monkeypatch.setattr("ssl_lm.splits.SMALLEST", 1000)
    write = prepare_module.write_shard

    def write_and_die(file, *rest):
        if file.name == "train-00002":
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, *rest)

    monkeypatch.setattr(prepare_module, "write_shard", write_and_die)
    asked = Asked(typed={"vocab_size": 500})
    assert children.run(lambda: ready("texts", Path("run"), asked)).code == -signal.SIGKILL
    assert {path.name for path in Path("run").iterdir()} == {".data.part", ".lock"}
    again = []
    monkeypatch.setattr(
        prepare_module, "write_shard", lambda file, *rest: again.append(file.name) or write(file, *rest)
    )
    place, _ = ready("texts", Path("run"), asked)
    assert again[0] == "train-00002" and {path.name for path in Path("run").iterdir()} == {"data", ".lock"}
    assert json.loads((place / META).read_text())["splits"]["test"]


def test_a_second_command_is_refused_while_one_prepares(folder):
    Path("run").mkdir()
    with FileLock("run/.lock"), pytest.raises(InputError, match="run is in use by another process: wait for it"):
        ready("texts", Path("run"), Asked())
    assert not Path("run/data").exists()


def test_runs_and_tokens_among_the_texts_are_no_texts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert trained(data=".", out="runs/gpt") == 0
    prepare_text(".", "tokens", tokenizer="train:500", workers=0)
    assert sorted(path.name for path in list_files(Path("."))) == sorted(
        f"{i}.{'md' if i % 2 else 'txt'}" for i in range(8)
    )
    assert trained(data=".", out="runs/gpt") == 0, "and no warning"


def test_texts_that_cannot_be_prepared_leave_nothing_behind(folder, capsys):
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes() + b"\0" * 4096)
    assert trained(out="runs/mine") == 2
    assert "holds no text" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_too_few_texts_say_how_many_are_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("a few words")
    assert trained(data="x.txt") == 2
    assert capsys.readouterr().err == "ssl-lm: x.txt holds 11 bytes of text to train on: give 4,096 or more\n"
    assert not Path("run").exists()


def test_a_folder_of_the_users_is_left_alone(folder, capsys):
    Path("data").mkdir()
    Path("data/mine.txt").write_text("mine")
    assert trained(out=".") == 2
    assert "data holds something else than prepared text: give another --out" in capsys.readouterr().err
    assert Path("data/mine.txt").read_text() == "mine" and not Path(".data.part").exists()


def test_the_vocabulary_grows_with_the_root_of_the_text():
    assert [vocabulary(size) for size in (2**12, 2**20, 2**22, 2**24)] == [SMALLEST, 2**11, 2**12, 2**13]
    assert vocabulary(2**40) == LARGEST


def test_the_tokenizer_of_weights_to_start_from_is_kept(run, folder):
    _, [choice] = ready("texts", Path("run"), Asked(), str(run))
    assert choice.value == 400 and choice.why == f"the tokenizer of {run}"
    flags = ["--init", str(run), "--max-steps", "2", "--device", "cpu", "--workers", "0"]
    assert main(RECIPES, ["train", "--data", "texts", "--out", "more", *flags], VERBS) == 0
    assert GPT.from_pretrained("more").config.vocab_size == 400


def test_a_preset_of_a_published_tokenizer_is_refused(folder):
    with pytest.raises(
        InputError, match="50,257 tokens of a published tokenizer: run `ssl-lm prepare texts --tokenizer"
    ):
        ready("texts", Path("run"), Asked(gpt2()))


def test_prepared_data_are_opened_where_they_are(folder):
    prepare_text("texts", "tokens", tokenizer="train:500", workers=0)
    for data in ("tokens", Path("tokens"), "stdlib", None):
        assert ready(data, Path("run"), Asked()) == (data, [])
    assert not Path("run").exists()


def test_an_evaluation_of_the_same_texts_measures_the_held_out_part(folder, capsys):
    sizes = {"context": 16, "dim": 16, "depth": 1, "heads": 2}
    config = GPTConfig(vocab_size=None, **sizes, epochs=0.1, batch_size=4, warmup_epochs=0, precision="fp32")
    done = train(config, data="texts", out="run", options=OPTIONS)
    measured = [evaluate(done, device="cpu")["measured"]]
    for named in ([], ["--data", "texts/"], ["--data", str(folder)]):
        assert main(RECIPES, ["evaluate", "run", *named, "--device", "cpu"], VERBS) == 0
        measured.append(json.loads(Path("run/evaluation.json").read_text())["measured"])
        said = capsys.readouterr().out
        assert "measured on the data's own test split; " in said and ", never trained on" in said
    assert all(found == measured[0] for found in measured), "from Python and by every name of the texts"
    for seed, label in enumerate("ab"):
        (folder / label).mkdir()
        (folder / label / "x.txt").write_text(write_text(40, seed=seed))
    place, _ = ready(str(folder), Path("run"))
    assert place == str(folder), "labels need the texts themselves"
