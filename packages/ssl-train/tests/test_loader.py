"""Which samples make which batch, with which randomness, and what happens to those that cannot be
read."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core.config import ConfigError
from ssl_testing import children
from ssl_testing.tiny import Pictures, TinyConfig, TwoCrops
from ssl_train.data import loader
from ssl_train.data.loader import Batches, Plan, TooManyBadSamples
from ssl_train.errors import TrainingError

PLAN = Plan(samples=50, batch_size=8, epochs=3, seed=0)


def keys(plan, start=0, parts=1, rank=0, world=1):
    return list(plan.micro_batches(start, parts=parts, rank=rank, world=world))


def draw(sample, rng):
    return {"draw": torch.tensor(rng.integers(2**63))}


def test_an_epoch_holds_every_sample_at_most_once_in_an_order_of_its_own():
    assert (PLAN.steps_per_epoch, PLAN.steps) == (6, 18)
    epochs = [[key for batch in keys(PLAN)[6 * e : 6 * e + 6] for key in batch] for e in range(3)]
    for number, epoch in enumerate(epochs):
        assert {e for e, _ in epoch} == {number}
        assert len({sample for _, sample in epoch}) == 48
    orders = [[sample for _, sample in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])
    assert keys(PLAN) == keys(Plan(50, 8, 3, seed=0)) != keys(Plan(50, 8, 3, seed=1))


def test_the_last_samples_of_an_epoch_are_left_out_and_others_in_the_next():
    left_out = [set(range(50)) - {s for b in keys(PLAN)[6 * e : 6 * e + 6] for _, s in b} for e in range(3)]
    assert [len(samples) for samples in left_out] == [2, 2, 2] and len(set.union(*left_out)) > 2


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_and_micro_batches_split_the_same_batches(parts, world):
    ranks = [keys(PLAN, parts=parts, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(keys(PLAN)):
        joined = [key for part in range(parts) for rank in ranks for key in rank[step * parts + part]]
        assert joined == whole


@pytest.mark.parametrize("start", [1, 6, 7, 17, 18])
def test_a_plan_goes_on_from_any_step(start):
    assert keys(PLAN, start=start) == keys(PLAN)[start:]


@pytest.mark.parametrize("samples", range(8, 18))
def test_uneven_data_make_whole_batches(samples):
    plan = Plan(samples, 8, 2, 0)
    assert plan.steps == 2 * (samples // 8)
    assert all(len(batch) == 8 for batch in keys(plan))


def test_what_cannot_be_split_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match="the data has 7 samples, fewer than one batch of 8: use --batch-size 3"):
        Plan(7, 8, 1, 0)
    with pytest.raises(ConfigError, match="the data has 2 samples, fewer than one batch of 8: it needs more data"):
        Plan(2, 8, 1, 0)
    with pytest.raises(ConfigError, match="batch_size = 8 cannot be split over 3 processes x 1 micro-batches"):
        keys(PLAN, world=3)
    with pytest.raises(ConfigError, match="over 1 processes x 3 micro-batches"):
        Batches(Pictures(50), draw, PLAN, parts=3)


def test_less_than_a_step_is_one():
    assert Plan(50, 8, 0.01, 0).steps == 1


def contents(batches):
    with batches.watched():
        return [
            [(part["index"].tolist(), [view.tolist() for view in part["views"]]) for part in step] for step in batches
        ]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_are_the_same_with_any_number_of_processes_and_from_any_step(workers):
    plan, transform = Plan(32, 8, 3, 0), TwoCrops(TinyConfig())
    alone = contents(Batches(Pictures(32), transform, plan, parts=2))
    assert [[len(index) for index, _ in step] for step in alone] == [[4, 4]] * 12
    assert (
        children.run(lambda: contents(Batches(Pictures(32), transform, plan, parts=2, workers=workers))).value == alone
    )
    assert contents(Batches(Pictures(32), transform, plan, start=5, parts=2)) == alone[5:]


def test_batches_leave_the_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    contents(Batches(Pictures(32), TwoCrops(TinyConfig()), Plan(32, 8, 1, 0)))
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_ten_thousand_draws_over_workers_epochs_and_ranks_are_all_different(monkeypatch):
    plan, draws = Plan(1250, 10, 8, 0), []
    monkeypatch.setattr(loader.distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(loader.distributed, "rank", lambda rank=rank: rank)

        def collect():
            return [
                value for [part] in Batches(Pictures(1250), draw, plan, workers=2) for value in part["draw"].tolist()
            ]

        draws += children.run(collect).value
    assert len(draws) == 10_000 == len(set(draws))


def test_labels_and_indices_come_with_the_batch():
    for [part] in Batches(Pictures(32), draw, Plan(32, 8, 1, 0)):
        assert part["label"].tolist() == [index % 4 for index in part["index"].tolist()]


def broken(number=64, bad=(3, 17, 40)):
    source = Pictures(number)
    source.bad = set(bad)
    return source


@pytest.mark.filterwarnings("ignore:picture .* is unreadable")
def test_an_unreadable_sample_is_replaced_by_the_same_other_one_everywhere():
    plan, transform = Plan(64, 8, 3, 0), TwoCrops(TinyConfig())
    batches = Batches(broken(), transform, plan)
    alone = contents(batches)
    assert batches.bad == {i: (f"picture {i}", "it is a bad one") for i in (3, 17, 40)}
    assert not {3, 17, 40} & {i for [(index, _)] in alone for i in index}
    assert children.run(lambda: contents(Batches(broken(), transform, plan, workers=2))).value == alone
    assert contents(Batches(broken(), transform, plan, start=9)) == alone[9:]
    # everything else is as if all could be read
    whole = contents(Batches(Pictures(64), transform, plan))
    same = [a == b for [(x, v)], [(y, w)] in zip(alone, whole, strict=True) for a, b in zip(x, y, strict=True)]
    assert same.count(False) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_of_one_colour_are_counted_and_trained_on(workers):
    source = Pictures(32)
    load = source.load

    def painted(index):
        sample = load(index)
        if index % 10 == 0:
            sample["image"] = torch.tensor([9, 200, 0], dtype=torch.uint8)[:, None, None].expand_as(sample["image"])
        if index == 5:
            sample["image"] = torch.zeros_like(sample["image"])
            sample["image"][0, -1, -1] = 1  # a single dot
        return sample

    source.load = painted

    def look():
        batches = Batches(source, draw, Plan(32, 8, 2, 0), workers=workers)
        return len(list(batches)), batches.bad, batches.blank

    blank = {index: (f"picture {index}", "one colour all over") for index in (0, 10, 20, 30)}
    assert children.run(look).value == (8, {}, blank)


def test_unreadable_samples_are_named_once_and_ten_of_them_at_most():
    with pytest.warns(UserWarning) as shown:
        list(Batches(broken(1200, range(0, 1200, 100)), draw, Plan(1200, 8, 2, 0)))
    messages = [str(warning.message) for warning in shown]
    assert len(messages) == len(set(messages)) == 10
    assert all(
        message.endswith("is unreadable, another sample takes its place: it is a bad one") for message in messages
    )


@pytest.mark.filterwarnings("ignore:picture .* is unreadable")
@pytest.mark.parametrize(("number", "limit"), [(64, 10), (1500, 15)])
@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_ten_and_a_percent_are_too_many(number, limit, workers):
    plan = Plan(number, 4, 1, 0)

    def count(bad):
        batches = Batches(broken(number, range(bad)), draw, plan, workers=workers)
        with batches.watched():
            assert len(list(batches)) == plan.steps  # whole batches: the loop may save before it raises
        return len(batches.bad), str(batches.spoilt)

    assert children.run(lambda: count(limit)).value == (limit, "None")
    found, error = children.run(lambda: count(limit + 1)).value
    assert found == limit + 1
    assert error.startswith(f"{limit + 1} of {number} samples are unreadable, more than {limit}")
    assert "picture 0: it is a bad one" in error


@pytest.mark.filterwarnings("ignore:picture .* is unreadable")
@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_which_nothing_can_be_read_are_an_error_in_one_line(workers):
    def read():
        batches = Batches(broken(8, range(8)), draw, Plan(8, 4, 1, 0), workers=workers)
        with batches.watched():
            list(batches)

    ended = children.run(read)
    assert ended.error.startswith("TooManyBadSamples: 100 samples in a row are unreadable, the last: picture ")
    assert "\n" not in ended.error


def dying(source, index, how):
    source.faults = [lambda i: how() if i == index else None]
    return source


def read_with_workers(how, timeout, index=17):
    """The error of a loop over data of which a sample ends or holds its reader, and what is left
    behind."""

    def read():
        before = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
        batches = Batches(dying(Pictures(64), index, how), draw, Plan(64, 8, 1, 0), workers=2, timeout=timeout)
        try:
            with batches.watched():
                for _ in batches:
                    time.sleep(0.01)  # torch raises its error wherever the loop is
        except RuntimeError as error:
            left = [child.pid for child in multiprocessing.active_children()]
            after = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
            return f"{type(error).__name__}: {error}", left, sorted(after - before)
        return "no error", [], []

    return children.run(read)


@pytest.mark.parametrize(
    ("how", "timeout", "said"),
    [
        # torch looks again after the timeout, where its error was raised in code that swallows it
        (lambda: os._exit(3), 10.0, "exited unexpectedly"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 10.0, "DataLoader worker"),
        (lambda: time.sleep(3600), 2.0, "timed out after 2"),
        (lambda: os._exit(0), 2.0, "exited unexpectedly"),  # as if all were well: torch looks for it after the timeout
    ],
    ids=["exits", "is killed", "hangs", "exits with 0"],
)
def test_a_worker_is_named_with_its_sample_when_it(how, timeout, said):
    ended = read_with_workers(how, timeout)
    message, orphans, files = ended.value
    assert message.startswith("LoaderError: step ") and "was reading picture 17" in message, ended
    assert said in message and "\n" not in message
    assert orphans == [] and files == [], ended


def test_a_worker_that_is_still_starting_is_ended_with_the_others(monkeypatch):
    init = loader._init_worker
    monkeypatch.setattr(loader, "_init_worker", lambda worker: time.sleep(3600) if worker == 1 else init(worker))
    index = keys(Plan(64, 8, 1, 0))[0][0][1]  # of the first batch, which is worker 0's
    message, orphans, _ = read_with_workers(lambda: os._exit(3), 10.0, index).value
    assert f"was reading picture {index}" in message and orphans == []


def test_a_worker_whose_parent_died_before_it_began_ends(monkeypatch):
    def begin():
        samples = types.SimpleNamespace(parent=-1, reading=torch.zeros(1, 2, dtype=torch.int64))
        monkeypatch.setattr(loader, "get_worker_info", lambda: types.SimpleNamespace(dataset=samples))
        loader._init_worker(0)
        return "it went on"

    ended = children.run(begin)
    assert (ended.code, ended.value) == (1, None), ended


def test_a_loop_that_fails_takes_its_workers_along():
    def loop():
        batches = Batches(Pictures(64), draw, Plan(64, 8, 9, 0), workers=2)
        with pytest.raises(ZeroDivisionError), batches.watched():
            for _ in batches:
                raise ZeroDivisionError
        return [child.pid for child in multiprocessing.active_children()]

    ended = children.run(loop)
    assert ended.value == [], ended


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_worker_behind(tmp_path):
    def heavy(sample, rng):
        return {"draw": torch.zeros(25_000)}  # a batch by value, larger than a pipe

    def loop():
        batches = Batches(Pictures(64), heavy, Plan(64, 8, 9, 0), workers=2)
        with batches.watched():
            for _ in batches:
                (tmp_path / "pids").write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
                time.sleep(0.5)  # until both wait for their results to be taken
                os.kill(os.getpid(), signal.SIGKILL)

    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
        except OSError:
            return False

    ended = children.run(loop)
    assert ended.code == -signal.SIGKILL, ended
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    last = time.monotonic() + 30  # torch looks for the parent every 5 seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < last:
        time.sleep(0.1)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert left == []


def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_main_process():
    def loop():
        batches, seen = Batches(Pictures(64), draw, Plan(64, 8, 2, 0), workers=2, timeout=20), 0
        with batches.watched():
            for _ in batches:
                seen += 1
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGTERM)
                    os.kill(child.pid, signal.SIGINT)
        return seen

    ended = children.run(loop)
    assert ended.value == 16, ended


def test_a_signal_that_comes_while_workers_start_waits_for_them(monkeypatch):
    init, seen = loader._init_worker, []

    def slow(worker):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        init(worker)

    def loop():
        monkeypatch.setattr(loader, "_init_worker", slow)
        signal.signal(signal.SIGTERM, lambda *_: seen.append("SIGTERM"))
        begin = multiprocessing.process.BaseProcess.start
        monkeypatch.setattr(
            multiprocessing.process.BaseProcess, "start", lambda p: [begin(p), os.kill(os.getpid(), signal.SIGTERM)]
        )
        batches = Batches(Pictures(64), draw, Plan(64, 8, 2, 0), workers=2, timeout=20)
        with batches.watched():
            steps = len(list(batches))
        return steps, seen

    ended = children.run(loop)
    assert ended.value == (16, ["SIGTERM"]), ended


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_batches_are_the_same_however_workers_are_started(method, tmp_path):
    """forkserver is the default of Python 3.14 on Linux, spawn that of Windows and macOS."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing
        from ssl_testing.tiny import Pictures, TinyConfig, TwoCrops
        from ssl_train.data.loader import Batches, Plan

        if __name__ == "__main__":
            multiprocessing.set_start_method("{method}")
            batches = Batches(Pictures(32), TwoCrops(TinyConfig()), Plan(32, 8, 1, 0), workers=1, timeout=90)
            with batches.watched():
                for [part] in batches:
                    print(part["index"].tolist(), [int(view.sum()) for view in part["views"]])
    """)
    )
    shown = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.splitlines()
    alone = Batches(Pictures(32), TwoCrops(TinyConfig()), Plan(32, 8, 1, 0))
    assert shown == [f"{p['index'].tolist()} {[int(view.sum()) for view in p['views']]}" for [p] in alone]


def test_a_worker_of_a_server_ends_when_the_main_process_died(monkeypatch):
    def begin():
        died = types.SimpleNamespace(is_alive=lambda: False)
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "forkserver")
        monkeypatch.setattr(multiprocessing, "parent_process", lambda: died)
        loader._leave_orphaned(os.getppid())
        return "it went on"

    assert children.run(begin).code == 1


def test_workers_are_counted_where_the_system_does_not_say_which_cores_are_ours(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    for count, workers in ((None, 1), (1, 1), (6, 3), (64, 8)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert loader.default_workers() == workers


def test_an_error_of_the_source_itself_keeps_its_type():
    source = Pictures(64)
    source.faults = [lambda index: 1 / 0]
    batches = Batches(source, draw, Plan(64, 8, 1, 0))
    with pytest.raises(ZeroDivisionError), batches.watched():
        list(batches)


def test_unreadable_data_and_a_dead_worker_end_a_run():
    assert issubclass(TooManyBadSamples, TrainingError) and issubclass(loader.LoaderError, TrainingError)
