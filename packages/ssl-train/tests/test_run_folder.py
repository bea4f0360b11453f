"""The run folder: disks that fail, data that change between two starts, and what a refused run
leaves."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import subprocess
import warnings

import pytest
from safetensors import SafetensorError

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_testing import faults
from ssl_testing.state import differing, newest, whole_state
from ssl_testing.tiny import RECIPES, Tiny, TinyConfig, write_pictures
from ssl_testing.trial import Trial
from ssl_train.checkpoint import CheckpointError
from ssl_train.run import RunError

TRIAL = Trial(RECIPES["tiny"], TinyConfig(precision="fp32", warmup_epochs=0.25))


@pytest.fixture
def pictures(tmp_path):
    """(folder of 16 pictures, a trial of 2 steps on it)."""
    folder = write_pictures(tmp_path / "pictures", TRIAL.config, 16)
    return folder, dataclasses.replace(TRIAL.replace(epochs=1, warmup_epochs=0.0), data=str(folder))


def rewrite(path, content):
    """Replace a file's content; its modification time moves by a second."""
    time = path.stat().st_mtime_ns + 10**9
    path.write_bytes(content)
    os.utime(path, ns=(time, time))


def test_a_picture_of_another_size_is_named_and_refused(pictures, tmp_path):
    folder, trial = pictures
    trial.here(tmp_path / "run")
    rewrite(folder / "dark" / "004.png", b"other")
    with pytest.raises(
        InputError, match=r"1 data file \(dark/004.png \(\d+ → 5 bytes\)\) changed since .* began.*--out"
    ):
        trial.here(tmp_path / "run")


def test_new_and_missing_pictures_are_named_and_refused(pictures, tmp_path):
    folder, trial = pictures
    trial.here(tmp_path / "run")
    (folder / "dark" / "004.png").rename(folder / "dark" / "new.png")
    with pytest.raises(
        RunError, match=r"(?s)data_fingerprint: .*2 data files \(dark/004.png \(gone\), dark/new.png \(new\)"
    ):
        trial.here(tmp_path / "run")


def test_another_modification_time_is_a_warning_on_the_machine_of_the_run_alone(pictures, tmp_path, monkeypatch):
    folder, trial = pictures
    trial.here(tmp_path / "run")
    picture = folder / "dim" / "001.png"
    rewrite(picture, picture.read_bytes())
    with pytest.warns(UserWarning, match=r"1 data file \(dim/001.png\) may have changed .* modification time differs"):
        trial.here(tmp_path / "run")
    monkeypatch.setattr(platform, "node", lambda: "another")
    trial.here(tmp_path / "run")  # a warning would be an error


def test_verify_compares_contents_and_not_times(pictures, tmp_path):
    folder, trial = pictures
    trial.here(tmp_path / "run", verify=True)
    picture = folder / "dim" / "001.png"
    content = picture.read_bytes()
    rewrite(picture, content)
    trial.here(tmp_path / "run", verify=True)
    rewrite(picture, content[:-1] + b"x")
    with pytest.raises(InputError, match=r"dim/001.png \(same size, other content\)"):
        trial.here(tmp_path / "run", verify=True)


def test_verify_says_what_it_cannot_compare(pictures, tmp_path):
    _, trial = pictures
    trial.here(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"began without --verify: the content of 16 data files .* cannot be compared"):
        trial.here(tmp_path / "run", verify=True)


def test_a_file_of_arrays_is_compared_too(tmp_path):
    two = {"in_channels": 2, "mean": (0.5, 0.5), "std": (0.5, 0.5)}
    trial = TRIAL.replace(**two, epochs=1, warmup_epochs=0.0)
    file = write_pictures(tmp_path / "pictures", trial.config, 16)
    trial = dataclasses.replace(trial, data=str(file))
    trial.here(tmp_path / "run")
    os.utime(file, (1, 1))
    with pytest.warns(UserWarning, match=r"1 data file \(pictures.npz\) may have changed"):
        trial.here(tmp_path / "run")


@pytest.mark.parametrize("where", ["run", "a/b/run"])
def test_a_refused_run_leaves_no_folder(where, tmp_path):
    with pytest.raises(ConfigError, match="fewer than one batch"):
        TRIAL.replace(batch_size=500).here(tmp_path / where)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_room_is_refused_and_not_left(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(RunError, match="10 bytes free"):
        TRIAL.here(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_folder_keeps_what_it_held_and_nothing_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(RunError, match="holds no run"):
        TRIAL.here(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_folder_renamed_before_the_last_save_loses_nothing(tmp_path):
    TRIAL.here(tmp_path / "whole", checkpoint_minutes=60)
    run, away = tmp_path / "run", tmp_path / "away"
    move = faults.before(19, lambda method: run.rename(away))
    with pytest.raises(CheckpointError, match="Step 20 and its weights were saved in .* instead: move .*step-000020"):
        TRIAL.here(run, move, checkpoint_minutes=60)
    assert not run.exists()
    [place] = tmp_path.glob("run-rescued-*")
    reference = Tiny.from_pretrained(tmp_path / "whole").state_dict()
    assert differing(Tiny.from_pretrained(place).state_dict(), reference) == []
    (place / "checkpoints" / "step-000020").rename(away / "checkpoints" / "step-000020")
    TRIAL.here(away, checkpoint_minutes=60)
    assert differing(whole_state(newest(away)), whole_state(newest(tmp_path / "whole"))) == []
    assert (away / "model.safetensors").exists()


def test_a_run_folder_gone_for_a_moment_in_a_save_that_need_not_succeed_costs_that_save(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    moves = faults.before(5, lambda method: run.rename(away)), faults.before(6, lambda method: away.rename(run))
    with pytest.warns(UserWarning, match="checkpoint of step 6 could not be written .* free space is unknown"):
        TRIAL.here(run, *moves)
    assert newest(run).name == "step-000020" and not list(tmp_path.glob("run-rescued-*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_weights_that_cannot_be_published_are_written_elsewhere(error, tmp_path, monkeypatch):
    publish = Tiny.save_pretrained

    def full(method, folder):
        if folder == tmp_path / "run":
            raise error
        return publish(method, folder)

    monkeypatch.setattr(Tiny, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"could not be written .* The weights were saved in .*run-rescued-"):
        TRIAL.here(tmp_path / "run")
    [place] = tmp_path.glob("run-rescued-*")
    assert Tiny.from_pretrained(place)


def test_what_a_kill_left_of_published_files_is_cleared_at_the_next_start(tmp_path):
    TRIAL.here(tmp_path / "run")
    (tmp_path / "run" / ".saving-abc").mkdir()
    (tmp_path / "run" / ".bad_samples.json.1.part").touch()
    TRIAL.here(tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").glob(".*")} - {".lock"}
    assert left == set()


def mounted(place, options):
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("a disk can be mounted by root alone")


@pytest.mark.parametrize(("options", "said"), [("size=4k", "No space left|0 are free"), ("ro,size=4k", "Read-only")])
def test_a_disk_that_takes_no_byte_is_refused_in_one_line(options, said, tmp_path):
    disk = tmp_path / "disk"
    mounted(disk, options)
    try:
        if "ro" not in options:
            (disk / "full").write_bytes(bytes(4096))
        with pytest.raises(RunError, match=f"cannot be used .*({said}).*give another --out"):
            TRIAL.here(disk / "run")
        assert not (disk / "run").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_folder_below_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with warnings.catch_warnings(), pytest.raises(RunError, match="cannot be used .*Not a directory"):
        TRIAL.here(tmp_path / "file" / "run")
