"""Two processes on this machine, over gloo: they compute what one would, and stop, go on and fail
together."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ssl_core import distributed
from ssl_core.batch_norm import BatchNorm, sync_batch_norm
from ssl_testing import children, faults
from ssl_testing.state import apart, differing, newest, whole_state
from ssl_testing.tiny import RECIPES, TinyConfig, write_pictures
from ssl_testing.trial import Trial
from ssl_train.processes import barrier, broadcast_object, by_main, gather_objects, process_group

TRIAL = Trial(RECIPES["tiny"], TinyConfig(precision="fp32", warmup_epochs=0.25))
QUIET = TRIAL.replace(dropout=0.0)


def ranks(world, function):
    """What `function` returns on each of `world` ranks inside a process group."""

    def inside():
        with process_group(60):
            return function()

    ended = children.run_ranks(world, inside)
    for end in ended:
        assert end.code == 0, end
    return [end.value for end in ended]


def test_alone_every_function_is_a_no_op():
    x = torch.ones(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather(x) is x and distributed.all_reduce_sum(x) is x
    assert broadcast_object("a") == "a" and gather_objects("a") == ["a"]
    barrier()
    with process_group():
        assert not distributed.is_on()


def test_ranks_know_each_other_and_exchange_objects():
    def exchange():
        return (
            distributed.rank(), distributed.world_size(), distributed.is_main(),
            broadcast_object(f"from {distributed.rank()}"),
            gather_objects({"rank": distributed.rank()}),
            distributed.all_reduce_sum(torch.tensor([1.0, float(distributed.rank())])).tolist(),
        )  # fmt: skip

    common = ("from 0", [{"rank": 0}, {"rank": 1}], [2.0, 1.0])
    assert ranks(2, exchange) == [(0, 2, True, *common), (1, 2, False, *common)]


def test_a_group_inside_a_group_is_the_outer_one():
    def nested():
        with process_group():
            inner = distributed.world_size()
        return inner, distributed.is_on()

    assert ranks(2, nested) == [(2, True)] * 2


def info_nce(queries, keys, first):
    """Cross-entropy of local queries against all keys, whose row `first + i` belongs to query i; a
    mean."""
    return F.cross_entropy(queries @ keys.T / 0.2, torch.arange(first, first + len(queries)))


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (1, 6), (0, 5)])
def test_a_loss_over_gathered_rows_has_the_gradient_of_the_joined_batch(sizes, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(sum(sizes), 5, dtype=torch.float64)
    weight = torch.randn(5, 4, dtype=torch.float64)
    joined_weight, joined_x = weight.clone().requires_grad_(), x.clone().requires_grad_()
    features = torch.tanh(joined_x @ joined_weight)
    info_nce(features, features, 0).backward()

    def local():
        rank, start = distributed.rank(), sum(sizes[: distributed.rank()])
        w = weight.clone().requires_grad_()
        own = x[start : start + sizes[rank]].clone().requires_grad_()
        features = torch.tanh(own @ w)
        keys = distributed.gather(features)
        assert keys.shape == (sum(sizes), 4)
        # a mean over the ranks' means, each weighted by its rows
        loss = info_nce(features, keys, start) * len(own) * 2 / sum(sizes) if len(own) else keys.sum() * 0
        loss.backward()
        save_file({"w": w.grad, "x": own.grad, "keys": keys.detach()}, tmp_path / f"{rank}.safetensors")

    ranks(2, local)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert torch.equal(first["keys"], second["keys"])
    assert (first["keys"] - torch.tanh(x @ weight)).abs().max() < 1e-12
    # DDP takes the mean over ranks of the weights' gradients; the samples' own keep the factor 2
    assert ((first["w"] + second["w"]) / 2 - joined_weight.grad).abs().max() < 1e-12
    assert (torch.cat([first["x"], second["x"]]) / 2 - joined_x.grad).abs().max() < 1e-12


def test_rows_of_any_shape_and_type_are_gathered_in_the_order_of_the_ranks():
    def collect():
        rank = distributed.rank()
        rows = distributed.gather(torch.full((rank + 1, 2, 2), rank, dtype=torch.int64))
        return rows[:, 0, 0].tolist(), list(rows.shape)

    assert ranks(3, collect) == [([0, 1, 1, 2, 2, 2], [6, 2, 2])] * 3


def test_two_processes_train_what_one_trains_up_to_rounding(tmp_path):
    assert QUIET.train(tmp_path / "one", checkpoint_minutes=60).code == 0
    for ended in QUIET.train_ranks(2, tmp_path / "two", checkpoint_minutes=60):
        assert ended.code == 0, ended
    one, two = (whole_state(newest(tmp_path / name)) for name in ("one", "two"))
    # rows of one step stand in the queue in the order of the ranks, which is that of the batch
    assert apart(two, one, 1e-5) == []


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(first, then, tmp_path):
    assert QUIET.train(tmp_path / "one", checkpoint_minutes=60).code == 0
    stop = faults.kill(11, signal.SIGTERM, rank=first - 1)
    for ended in QUIET.train_ranks(first, tmp_path / "run", stop, checkpoint_minutes=60):
        assert ended.code == 75, ended
    for ended in QUIET.train_ranks(then, tmp_path / "run", checkpoint_minutes=60):
        assert ended.code == 0, ended
    assert apart(whole_state(newest(tmp_path / "run")), whole_state(newest(tmp_path / "one")), 1e-5) == []


def test_the_joined_samples_do_not_depend_on_the_number_of_processes():
    def sequence(world, start):
        per_rank = [list(TRIAL.plan.micro_batches(start, parts=1, rank=rank, world=world)) for rank in range(world)]
        return [[key for rank in step for key in rank] for step in zip(*per_rank, strict=True)]

    assert sequence(2, 0)[:11] + sequence(1, 11) == sequence(1, 0) == sequence(1, 0)[:11] + sequence(4, 11)


@pytest.mark.parametrize("world", [2, 3])
def test_a_killed_group_goes_on_to_the_same_bits(world, tmp_path):
    trial = TRIAL.replace(batch_size=12)  # 13 steps
    for ended in trial.train_ranks(world, tmp_path / "whole", checkpoint_minutes=60):
        assert ended.code == 0, ended
    with children.Torchrun() as agent:
        kill = faults.kill(7, rank=world - 1)
        *others, victim = agent.start(world, lambda: trial.here(tmp_path / "run", kill) and None)
        ended = victim.end()
        assert ended.code == -signal.SIGKILL, ended
        for rank in others:  # as torchrun does
            rank.kill()
            rank.end()
        for rank in agent.start(world, lambda: trial.here(tmp_path / "run") and None, warns=True):
            ended = rank.end()
            assert ended.code == 0, ended
    assert differing(whole_state(newest(tmp_path / "run")), whole_state(newest(tmp_path / "whole"))) == []


def in_own_folders(trial, place, *given, **options):
    """Train in two ranks, each in a working folder of its own, into `run` there; how they ended."""

    def inside():
        own = place / os.environ["RANK"]
        own.mkdir(exist_ok=True)
        os.chdir(own)
        trial.here(Path("run"), *given, checkpoint_minutes=60, **options)

    return children.run_ranks(2, inside, warns=True)


def test_ranks_with_folders_of_their_own_resume_where_the_main_one_does(tmp_path):
    for ended in QUIET.train_ranks(2, tmp_path / "whole", checkpoint_minutes=60):
        assert ended.code == 0, ended
    stop = faults.kill(11, signal.SIGTERM, rank=1)
    assert [ended.code for ended in in_own_folders(QUIET, tmp_path, stop)] == [75, 75]
    assert [ended.code for ended in in_own_folders(QUIET, tmp_path)] == [0, 0]
    assert differing(whole_state(newest(tmp_path / "0" / "run")), whole_state(newest(tmp_path / "whole"))) == []


def test_a_checkpoint_that_one_rank_alone_sees_damaged_is_not_trained_on_apart(tmp_path):
    for ended in QUIET.train_ranks(2, tmp_path / "whole", checkpoint_minutes=60):
        assert ended.code == 0, ended
    for step in (9, 13):
        stop = faults.kill(step, signal.SIGTERM, rank=0)
        assert [ended.code for ended in in_own_folders(QUIET, tmp_path, stop)] == [75, 75]
    shutil.copytree(tmp_path / "0" / "run", tmp_path / "1" / "run", dirs_exist_ok=True)
    damaged = newest(tmp_path / "1" / "run") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert [ended.code for ended in in_own_folders(QUIET, tmp_path)] == [0, 0]
    assert differing(whole_state(newest(tmp_path / "0" / "run")), whole_state(newest(tmp_path / "whole"))) == []


def test_what_the_main_rank_refuses_all_refuse(tmp_path):
    (tmp_path / "0" / "run").mkdir(parents=True)
    (tmp_path / "0" / "run" / "thesis.tex").touch()
    for ended in in_own_folders(QUIET, tmp_path):
        assert ended.error.startswith("RunError: ") and "holds no run" in ended.error, ended


def test_a_last_save_that_fails_ends_every_rank(tmp_path):
    def move(method):
        if distributed.is_main():
            (tmp_path / "run").rename(tmp_path / "away")
        barrier()

    for ended in QUIET.train_ranks(2, tmp_path / "run", faults.before(19, move), checkpoint_minutes=60, warns=True):
        assert ended.error.startswith("CheckpointError: checkpoint of step 20"), ended


def test_ranks_with_other_data_are_refused(tmp_path):
    def inside():
        rank = int(os.environ["RANK"])
        trial = dataclasses.replace(QUIET, data=str(write_pictures(tmp_path / str(rank), QUIET.config, 16 + 8 * rank)))
        trial.here(tmp_path / "run")

    for ended in children.run_ranks(2, inside):
        assert ended.error.startswith("RunError: process 1, on ") and "data_fingerprint: " in ended.error, ended
    assert not (tmp_path / "run").exists()


def test_what_the_main_rank_does_alone_all_return_or_raise():
    def act():
        return by_main(lambda: distributed.rank() + 10)

    def fail():
        with pytest.raises(ZeroDivisionError):
            by_main(lambda: 1 / distributed.rank())
        return "raised"

    assert ranks(2, act) == [10, 10] and ranks(2, fail) == ["raised", "raised"]


def test_ranks_that_are_started_again_do_not_look_for_the_dead_ones():
    def meet():
        if os.environ["RANK"] == "0":  # the other one is first, and finds what the store still holds
            time.sleep(0.5)
        with process_group(60):
            return gather_objects(os.getpid())

    with children.Torchrun() as agent:
        for _ in range(2):
            ranks = agent.start(2, meet)
            pids = [rank.pid for rank in ranks]
            assert [rank.end().value for rank in ranks] == [pids, pids]


NORM_SHAPE = {2: (4,), 3: (4, 5), 4: (4, 3, 2)}


def norm_and_batch(ndim, samples, **options):
    """A batch norm with its own gain and shift, a batch (b, 4, …) far from zero, and the gradient
    that reaches it."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, dtype=torch.float64, **options)
    norm._check_input_dim = lambda input: None  # any number of axes
    if norm.affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    shape = (samples, *NORM_SHAPE[ndim])
    return norm, torch.randn(shape, dtype=torch.float64) * 3 + 100, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize(("sizes", "ndim"), [((3, 3), 4), ((5, 2), 2), ((1, 6), 3), ((0, 4), 4)])
def test_batch_norm_of_two_ranks_is_that_of_the_joined_batch(sizes, ndim, options, tmp_path):
    def two_steps(norm, x, into):
        x.requires_grad_()
        for _ in range(2):
            out = norm(x)
        (out * into).sum().backward()
        named = {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
        return {**named, "out": out.detach(), "gradient of x": x.grad, **dict(norm.named_buffers())}

    def on_a_rank():
        norm, x, into = norm_and_batch(ndim, sum(sizes), **options)
        rows = slice(*([0, sizes[0]] if distributed.rank() == 0 else [sizes[0], None]))
        found = two_steps(sync_batch_norm(norm), x[rows].clone(), into[rows])
        save_file({k: v.contiguous() for k, v in found.items()}, tmp_path / f"{distributed.rank()}.safetensors")

    ranks(2, on_a_rank)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    joined = two_steps(*norm_and_batch(ndim, sum(sizes), **options))
    for name in first:
        if name in ("out", "gradient of x"):
            both = torch.cat([first[name], second[name]])
        elif name.startswith("gradient"):  # summed over ranks, as DDP's mean of a mean loss does
            both = first[name] + second[name]
        else:
            both = first[name]
            assert torch.equal(first[name], second[name]), f"the ranks disagree on {name}"
        assert torch.allclose(both.to(joined[name].dtype), joined[name], rtol=0, atol=1e-10), name


def test_batch_norm_alone_and_in_eval_mode_is_torchs():
    norm, x, _ = norm_and_batch(4, 6)
    theirs = copy.deepcopy(norm)
    ours = sync_batch_norm(nn.Sequential(norm))
    assert isinstance(ours[0], BatchNorm)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours[0].running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_swapping_batch_norms_keeps_parameters_names_and_the_optimisers_grip_on_them():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.BatchNorm1d(4)
    )
    before = dict(net.named_parameters()) | dict(net.named_buffers())
    net[3].eval()
    assert sync_batch_norm(net) is net
    after = dict(net.named_parameters()) | dict(net.named_buffers())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert net[1][0].training and not net[3].training


def test_batch_norm_of_half_precision_computes_statistics_in_fp32():
    def normed():
        norm = sync_batch_norm(nn.BatchNorm1d(3))
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(distributed.rank())).bfloat16() + 200
        out = norm(x)
        return out.dtype is torch.bfloat16, norm.running_mean.dtype is torch.float32, out.float().abs().max().item()

    for result in ranks(2, normed):
        assert result[:2] == (True, True) and 0.5 < result[2] < 4


def test_batch_norm_of_one_value_in_all_is_an_error_on_every_rank():
    def normed():
        with pytest.raises(ValueError, match="use --batch-size 2 or more"):
            BatchNorm(3)(torch.ones(1 - distributed.rank(), 3))
        return True

    assert ranks(2, normed) == [True, True]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(rank, tmp_path):
    stop = faults.kill(6, signal.SIGTERM, rank=rank)
    for ended in TRIAL.train_ranks(2, tmp_path / "run", stop, checkpoint_minutes=60):
        assert ended.code == 75, ended
    assert newest(tmp_path / "run").name == "step-000007"


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_the_weights_change(tmp_path):
    run = tmp_path / "run"
    for ended in TRIAL.train_ranks(2, run, faults.poison(7, rank=1)):
        assert ended.error.startswith("NonFiniteLoss: loss is "), ended
        assert "nan at step 7; the weights were not changed" in ended.error
    report = json.loads((run / "nan-7.json").read_text())
    assert [entry["rank"] for entry in report["ranks"]] == [0, 1]
    assert report["ranks"][1]["loss"] == "nan" != report["ranks"][0]["loss"]
    step = next(iter(TRIAL.plan.micro_batches(7, parts=1, rank=0, world=1)))
    assert [i for entry in report["ranks"] for i in entry["samples"]] == [sample for _, sample in step]
    assert newest(run).name == "step-000007"


def test_unreadable_samples_of_all_ranks_are_listed(tmp_path, monkeypatch):
    from ssl_testing import tiny

    opened = tiny.open_pictures(None, config=TRIAL.config)
    opened.bad = set(range(0, 64, 8))
    monkeypatch.setattr(tiny, "open_pictures", lambda data, *, config, split: opened)
    for ended in TRIAL.train_ranks(2, tmp_path / "run", warns=True):
        assert ended.code == 0, ended
    listed = json.loads((tmp_path / "run" / "bad_samples.json").read_text())
    assert sorted(int(sample["name"].split()[1]) for sample in listed) == list(range(0, 64, 8))


def test_a_batch_that_cannot_be_split_is_refused(tmp_path):
    for ended in TRIAL.train_ranks(3, tmp_path / "run"):
        assert ended.error.startswith("ConfigError: batch_size = 8 cannot be split over 3 processes"), ended


def test_the_group_ends_with_its_block():
    def after():
        with process_group(60):
            on = distributed.is_on()
        return on, distributed.is_on(), os.environ["WORLD_SIZE"]

    assert [end.value for end in children.run_ranks(2, after)] == [(True, False, "2")] * 2
