"""What is written is whole, what is read is what was written."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_testing import children, faults
from ssl_testing.state import differing, whole_state
from ssl_testing.tiny import Tiny, TinyConfig
from ssl_train import checkpoint
from ssl_train.checkpoint import CheckpointError, Checkpoints, bytes_needed
from ssl_train.optim import build_optimizer

CONFIG = TinyConfig()


def trained(steps=1, seed=0):
    """(method, optimiser) after a few steps on noise."""
    torch.manual_seed(seed)
    method = Tiny(CONFIG)
    optimizer = build_optimizer(method, CONFIG)
    for _ in range(steps):
        views = [torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8) for _ in range(2)]
        method({"views": views}, 0.0)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.0)
    return method, optimizer


def state_of(method, optimizer):
    moments = {
        f"{name}/{slot}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for slot, value in optimizer.state[parameter].items()
    }
    return {**method.state_dict(), **moments}


def raising(error):
    """A function that raises `error`."""

    def call(*args, **kwargs):
        raise error

    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_everything_that_is_saved_comes_back(tmp_path):
    method, optimizer = trained(3)
    Checkpoints(tmp_path, "a").save(3, method, optimizer)
    other, its_optimizer = trained(0, seed=1)
    assert Checkpoints(tmp_path, "a").restore(other, its_optimizer) == 3
    assert differing(state_of(other, its_optimizer), state_of(method, optimizer)) == []
    for parameter, value in zip(method.parameters(), other.parameters(), strict=True):
        value.grad = parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    its_optimizer.step()
    assert differing(state_of(other, its_optimizer), state_of(method, optimizer)) == []


def test_a_step_after_restoring_is_the_same_in_channels_last(tmp_path):
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        method = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return method, build_optimizer(method, CONFIG)

    def step(method, optimizer):
        for i, parameter in enumerate(method.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        optimizer.step()

    method, optimizer = made()
    step(method, optimizer)
    Checkpoints(tmp_path, "a").save(1, method, optimizer)
    other, its_optimizer = made()
    Checkpoints(tmp_path, "a").restore(other, its_optimizer)
    step(method, optimizer)
    step(other, its_optimizer)
    assert differing(state_of(other, its_optimizer), state_of(method, optimizer)) == []


def test_a_run_without_checkpoints_begins_at_0(tmp_path):
    method, optimizer = trained(0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert Checkpoints(tmp_path / "new", "a").restore(method, optimizer) == 0
    assert differing(method.state_dict(), before) == []


def test_tensors_that_share_memory_and_strided_ones_come_back(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.outer.weight = self.inner.weight
            self.register_buffer("turned", torch.arange(6.0).view(2, 3).t())

    method = Tied()
    optimizer = build_optimizer(method, CONFIG)
    Checkpoints(tmp_path, "a").save(1, method, optimizer)
    other = Tied()
    Checkpoints(tmp_path, "a").restore(other, build_optimizer(other, CONFIG))
    assert differing(other.state_dict(), method.state_dict()) == []


def test_the_last_two_are_kept(tmp_path):
    method, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, "a")
    for step in (5, 10, 15, 20):
        checkpoints.save(step, method, optimizer)
    assert names(tmp_path) == ["step-000015", "step-000020"]


def test_a_checkpoint_of_another_run_is_ignored_and_left_alone(tmp_path):
    method, optimizer = trained(2)
    Checkpoints(tmp_path, "other").save(9999, *trained(1, seed=1))
    mine = Checkpoints(tmp_path, "mine")
    assert mine.restore(*trained(0)) == 0
    for step in (1, 2, 3):
        mine.save(step, method, optimizer)
    assert names(tmp_path) == ["step-000002", "step-000003", "step-009999"]
    other = trained(0, seed=2)
    assert mine.restore(*other) == 3
    assert differing(state_of(*other), state_of(method, optimizer)) == []


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state.json"])
def test_a_damaged_newest_one_is_named_and_the_one_before_is_loaded(file, tmp_path):
    checkpoints, older = Checkpoints(tmp_path, "a"), trained(1)
    checkpoints.save(1, *older)
    before = {name: value.clone() for name, value in state_of(*older).items()}
    checkpoints.save(2, *trained(2))
    damage(tmp_path / "step-000002" / file)
    other = trained(0, seed=1)
    with pytest.warns(UserWarning, match=rf"step-000002 is damaged and passed over: .*({file}|JSON|Expecting)"):
        assert checkpoints.restore(*other) == 1
    assert differing(state_of(*other), before) == []


def test_a_damaged_later_one_is_removed_when_the_run_has_passed_it(tmp_path):
    checkpoints, (method, optimizer) = Checkpoints(tmp_path, "a"), trained()
    for step in (10, 20):
        checkpoints.save(step, method, optimizer)
    damage(tmp_path / "step-000020" / "model.safetensors")
    checkpoints.save(15, method, optimizer)
    assert names(tmp_path) == ["step-000010", "step-000015"]


def test_when_all_are_damaged_nothing_is_loaded(tmp_path):
    checkpoints, (method, optimizer) = Checkpoints(tmp_path, "a"), trained()
    for step in (1, 2):
        checkpoints.save(step, method, optimizer)
        damage(tmp_path / f"step-{step:06d}" / "model.safetensors")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with (
        pytest.warns(UserWarning, match="damaged and passed over"),
        pytest.raises(
            CheckpointError, match=r"no checkpoint in .* can be read: step-000002: .*; step-000001: .* Delete"
        ),
    ):
        checkpoints.restore(method, optimizer)
    assert differing(method.state_dict(), before) == []


def test_files_of_two_checkpoints_are_not_mixed(tmp_path):
    checkpoints = Checkpoints(tmp_path, "a")
    checkpoints.save(1, *trained(1))
    checkpoints.save(2, *trained(2))
    shutil.copy(tmp_path / "step-000001" / "optim.safetensors", tmp_path / "step-000002")
    with pytest.warns(UserWarning, match="optim.safetensors differs from what was written"):
        assert checkpoints.restore(*trained(0)) == 1


def test_a_renamed_step_is_what_it_says_inside(tmp_path):
    checkpoints = Checkpoints(tmp_path, "a")
    checkpoints.save(1, *trained(1))
    state = json.loads((tmp_path / "step-000001" / "state.json").read_text())
    (tmp_path / "step-000001" / "state.json").write_text(json.dumps({**state, "step": 7}))
    with pytest.warns(UserWarning, match="state.json differs"), pytest.raises(CheckpointError):
        checkpoints.restore(*trained(0))


def test_a_checkpoint_of_another_network_is_an_error(tmp_path):
    Checkpoints(tmp_path, "a").save(1, *trained(1))
    other = Tiny(TinyConfig(dim=8))
    with pytest.raises(CheckpointError, match=r"(?s)does not fit Tiny as it is now: .*size mismatch"):
        Checkpoints(tmp_path, "a").restore(other, build_optimizer(other, CONFIG))
    frozen = Tiny(CONFIG)
    frozen.student[0].requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"optimiser's state of \['student.0.bias', 'student.0.weight'\]"):
        Checkpoints(tmp_path, "a").restore(frozen, build_optimizer(frozen, CONFIG))


def save_in_a_child(folder, *, size, fatal):
    """Save step 2 with a limit on the size of files, which state.json alone meets when `size` is
    its name."""

    def save():
        method, optimizer = trained(2)
        if isinstance(size, int):
            faults.limit_file_size(size, fatal=fatal)
        else:  # the other files are written by now
            write = checkpoint.sum_of

            def limited(state):
                faults.limit_file_size(100, fatal=fatal)
                return write(state)

            checkpoint.sum_of = limited
        try:
            Checkpoints(folder, "a").save(2, method, optimizer)
        except CheckpointError as error:
            return str(error)
        return "saved"

    return children.run(save)


CUTS = [0, 1, 2000, 10_000, 15_000, 20_000, 25_000, "state.json"]


@pytest.mark.parametrize("size", CUTS)
def test_a_save_that_fails_at_any_byte_leaves_what_was_there(size, tmp_path):
    first = trained(1)
    Checkpoints(tmp_path, "a").save(1, *first)
    ended = save_in_a_child(tmp_path, size=size, fatal=False)
    assert ended.code == 0 and "checkpoint of step 2 could not be written" in ended.value, ended
    assert f"it needs {bytes_needed(first[0]) + 4 * 4:,} bytes" in ended.value  # and the optimiser's four step counts
    assert names(tmp_path) == ["step-000001"]
    other = trained(0, seed=1)
    assert Checkpoints(tmp_path, "a").restore(*other) == 1
    assert differing(state_of(*other), state_of(*first)) == []


@pytest.mark.parametrize("size", CUTS)
def test_a_kill_at_any_byte_of_a_save_leaves_what_was_there(size, tmp_path):
    first = trained(1)
    Checkpoints(tmp_path, "a").save(1, *first)
    ended = save_in_a_child(tmp_path, size=size, fatal=True)
    assert ended.code == -signal.SIGXFSZ, ended
    other = trained(0, seed=1)
    with pytest.warns(UserWarning, match="tmp-000002 is left over from a save that was interrupted, and is removed"):
        assert Checkpoints(tmp_path, "a").restore(*other) == 1
    assert names(tmp_path) == ["step-000001"]
    assert differing(state_of(*other), state_of(*first)) == []
    Checkpoints(tmp_path, "a").save(2, *first)
    assert names(tmp_path) == ["step-000001", "step-000002"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("a disk can be mounted by root alone")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_with_its_bytes_and_what_was_there_stays(small_disk):
    first = trained(1)
    checkpoints = Checkpoints(small_disk / "checkpoints", "a")
    checkpoints.save(1, *first)
    with pytest.raises(CheckpointError, match=r"No space left on device.*needs [\d,]+ bytes, [\d,]+ are free"):
        checkpoints.save(2, *trained(2))
    assert names(small_disk / "checkpoints") == ["step-000001"]
    other = trained(0, seed=1)
    assert checkpoints.restore(*other) == 1
    assert differing(state_of(*other), state_of(*first)) == []


@pytest.mark.filterwarnings("ignore:.* is left over from a save")
@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename", "rmtree"])
def test_an_error_of_the_disk_in_any_call_is_a_checkpoint_error(call, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "a")
    checkpoints.save(1, *trained(1))
    checkpoints.save(2, *trained(1))

    def broken(*args, ignore_errors=False, **kwargs):
        if not ignore_errors:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        owner = {"mkdir": Path, "rename": Path, "fsync": os, "rmtree": shutil}[call]
        patch.setattr(owner, call, broken)
        with pytest.raises(CheckpointError, match="Input/output error"):
            checkpoints.save(3, *trained(1))
    assert checkpoints.restore(*trained(0)) in (2, 3)


def test_a_half_deleted_checkpoint_is_cleared_at_the_next_start(tmp_path):
    Checkpoints(tmp_path, "a").save(1, *trained(1))
    shutil.copytree(tmp_path / "step-000001", tmp_path / "tmp-step-000000")
    with pytest.warns(UserWarning, match="tmp-step-000000 is left over"):
        assert Checkpoints(tmp_path, "a").restore(*trained(0)) == 1
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("gone", ["folder", "disk_usage"])
def test_the_free_space_that_cannot_be_asked_does_not_hide_the_error(gone, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", "a")
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    if gone == "disk_usage":
        monkeypatch.setattr(shutil, "disk_usage", raising(OSError(5, "Input/output error")))
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .* the free space is unknown"):
        checkpoints.save(2, *trained(1))


def test_saves_that_fail_in_a_row_are_said_once_and_wait_longer_and_longer(tmp_path):
    checkpoints, state = Checkpoints(tmp_path / "checkpoints", "a"), trained(1)
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    pauses = []
    with pytest.warns(UserWarning) as shown:
        for step in range(1, 10):
            checkpoints.try_save(step, *state)
            pauses.append(checkpoints.pause)
    [said] = [str(warning.message) for warning in shown]
    assert "checkpoint of step 1 could not be written" in said and "tries again later" in said
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])
    (tmp_path / "away").rename(tmp_path / "checkpoints")
    with pytest.warns(UserWarning, match="checkpoints can be written again, from step 10 on"):
        checkpoints.try_save(10, *state)
    assert checkpoints.pause == 0 and names(tmp_path / "checkpoints") == ["step-000010"]


def test_where_nothing_can_be_written_the_first_error_stands(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", "a")
    (tmp_path / "run").rename(tmp_path / "away")
    monkeypatch.setattr(checkpoint.tempfile, "mkdtemp", raising(OSError(30, "Read-only file system")))
    with pytest.raises(CheckpointError, match=r"step 3 could not be written [^.]*$"):
        checkpoints.save_or_rescue(3, *trained(1))


def test_checkpoints_are_saved_where_folders_cannot_be_flushed_as_on_windows(tmp_path, monkeypatch):
    """Windows opens no folder, and flushes only what is open for writing."""
    opened, flushed = os.open, os.fsync

    def windows_open(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *args, **kwargs)

    def windows_fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & 3 == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed(handle)

    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(os, "fsync", windows_fsync)
    Checkpoints(tmp_path, "a").save(1, *trained(1))
    assert Checkpoints(tmp_path, "a").restore(*trained(0)) == 1


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_files_are_readable_as_the_umask_says(tmp_path):
    old = os.umask(0o027)
    try:
        Checkpoints(tmp_path, "a").save(1, *trained(1))
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "step-000001").iterdir()}
    files = ("model.safetensors", "optim.safetensors", "preprocessor_config.json", "state.json")
    assert modes == dict.fromkeys(files, 0o640)


def test_the_bytes_it_needs_are_known_before(tmp_path):
    method, optimizer = trained(1)
    Checkpoints(tmp_path, "a").save(1, method, optimizer)
    written = sum(t.numel() * t.element_size() for t in whole_state(tmp_path / "step-000001").values())
    assert written - 64 <= bytes_needed(method) <= written
