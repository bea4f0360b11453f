"""The loop: what it computes, what it writes down, and how it stops. `test_conformance.py` kills
it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import types
import warnings

import numpy as np
import pytest
import torch

from ssl_core.config import ConfigError
from ssl_core.device import seed_step
from ssl_testing import children, faults
from ssl_testing.state import apart, differing, newest, whole_state
from ssl_testing.tiny import RECIPES, Pictures, Tiny, TinyConfig, TwoCrops, open_pictures, write_pictures
from ssl_testing.trial import Trial
from ssl_train.checkpoint import CheckpointError
from ssl_train.data.loader import TooManyBadSamples
from ssl_train.data.names import digest
from ssl_train.data.views import eval_view
from ssl_train.fit import NonFiniteLoss, fit
from ssl_train.log import Log
from ssl_train.optim import LossScaler, decay_groups
from ssl_train.options import RunOptions
from ssl_train.probe import Collapsed, Probe
from ssl_train.run import RunError
from ssl_train.stop import SIGNALS, Interrupted, StopSignal

TRIAL = Trial(RECIPES["tiny"], TinyConfig(precision="fp32", warmup_epochs=0.25))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of 20 steps that nothing happens to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    TRIAL.here(run, checkpoint_minutes=60)
    return run


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(run, other):
    return differing(whole_state(newest(run)), whole_state(newest(other))) == []


def test_a_run_goes_on_from_each_of_its_30_steps_to_the_same_bits(tmp_path):
    trial = TRIAL.replace(epochs=30 / 8)
    trial.here(tmp_path / "whole", checkpoint_minutes=60)
    for step in range(30):
        run = tmp_path / f"stopped-{step}"
        stop = faults.kill(step, signal.SIGTERM)
        if step == 29:  # told in its last step, it ends as it would have
            trial.here(run, stop, checkpoint_minutes=60)
        else:
            with pytest.raises(Interrupted) as stopped:
                trial.here(run, stop, checkpoint_minutes=60)
            assert (stopped.value.code, stopped.value.step) == (75, step + 1)
            assert newest(run).name == f"step-{step + 1:06d}"
            trial.here(run, checkpoint_minutes=60)
        assert same(run, tmp_path / "whole"), f"stopped in step {step}"


def test_three_stops_within_one_epoch_change_nothing(whole, tmp_path):
    for step in (9, 10, 13):
        with pytest.raises(Interrupted):
            TRIAL.here(tmp_path / "run", faults.kill(step, signal.SIGINT), checkpoint_minutes=60)
    TRIAL.here(tmp_path / "run", checkpoint_minutes=60)
    assert same(tmp_path / "run", whole)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_loader_processes_changes_nothing(workers, whole, tmp_path):
    # torch warns of more processes than cores
    ended = TRIAL.train(tmp_path / "run", workers=workers, checkpoint_minutes=60, warns=True)
    assert ended.code == 0, ended
    assert same(tmp_path / "run", whole)


def test_micro_batches_compute_the_same_step_up_to_rounding(tmp_path):
    trial = TRIAL.replace(dropout=0.0)
    trial.here(tmp_path / "one", checkpoint_minutes=60)
    trial.here(tmp_path / "four", checkpoint_minutes=60, accumulate=4)
    one, four = (whole_state(newest(tmp_path / name)) for name in ("one", "four"))
    assert apart(four, one, 1e-4) == []
    assert lines(tmp_path / "four")[-1]["loss"] == pytest.approx(lines(tmp_path / "one")[-1]["loss"], rel=1e-4)


def test_a_loss_that_spans_the_batch_is_not_accumulated(tmp_path):
    method, config = Tiny(TRIAL.config), TRIAL.config
    method.accumulates = False
    with pytest.raises(ConfigError, match="Tiny's loss spans the batch"):
        fit(method, open_pictures(None, config=config), TwoCrops(config), config, tmp_path, run_id="a", device=CPU,
            options=RunOptions(accumulate=2))  # fmt: skip


def test_the_order_of_hashes_does_not_matter():
    """In a process of another hash seed: the same initial weights, parameter groups and batches."""
    code = textwrap.dedent("""
        import hashlib
        from ssl_core.config import TrainConfig
        from ssl_train.data.loader import Batches, Plan
        from ssl_core.device import seed_step
        from ssl_testing.tiny import Tiny, TinyConfig, TwoCrops, open_pictures
        from ssl_train.optim import decay_groups

        config = TinyConfig()
        seed_step(config.seed)
        method, source = Tiny(config), open_pictures(None, config=config)
        total = hashlib.sha256()
        for name, value in method.state_dict().items():
            total.update(name.encode() + value.numpy().tobytes())
        total.update(repr([[name for name, _ in group["params"]] for group in decay_groups(method, 0.1)]).encode())
        for [batch] in Batches(source, TwoCrops(config), Plan(64, 8, 2.5, 0)):
            total.update(batch["index"].numpy().tobytes() + batch["views"][1].numpy().tobytes())
        print(total.hexdigest(), source.fingerprint())
    """)
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(code, {})
    assert len(here.getvalue()) > 64 and other.stdout == here.getvalue()


def test_a_gradient_that_is_not_finite_stops_a_run_without_a_scaler(tmp_path):
    def root_of_zero(method, outputs):
        return {**outputs, "loss": outputs["loss"] + (0 * method.student[3].bias).sum().sqrt()}

    with pytest.raises(NonFiniteLoss, match="the gradient is nan at step 5; the weights were not changed"):
        TRIAL.here(tmp_path / "run", faults.after(5, root_of_zero))
    assert newest(tmp_path / "run").name == "step-000005"


def overflow(method, outputs):
    bias = method.student[3].bias
    return {**outputs, "loss": outputs["loss"] + 1e38 * (bias - bias.detach()).sum()}


def scale(run):
    return json.loads((newest(run) / "state.json").read_text())["scaler"]["scale"]


def test_a_scaler_skips_two_bad_gradients_in_a_row_and_stops_at_three(tmp_path):
    half = TRIAL.replace(precision="fp16")
    half.here(tmp_path / "two", *(faults.after(step, overflow) for step in (3, 4, 6)))
    bad = [line["step"] - 1 for line in lines(tmp_path / "two") if not np.isfinite(line["grad_norm"])]
    assert bad[-3:] == [3, 4, 6]
    assert scale(tmp_path / "two") == 65536.0 / 2 ** len(bad)
    with pytest.raises(NonFiniteLoss, match="the gradient is inf at step 5"):
        half.here(tmp_path / "three", *(faults.after(step, overflow) for step in (3, 4, 5)))


def overflow_above(scale):
    """A gradient that fp16 would hold only under this scale of the loss."""

    def act(method, outputs):
        bias = method.student[3].bias
        nothing = (bias - bias.detach()).half().float().sum()  # its gradient passes through 16 bits
        return {**outputs, "loss": outputs["loss"] + 60_000 / scale * nothing}

    return act


@pytest.mark.parametrize("halvings", [4, 7, 16])
def test_a_scale_may_halve_as_often_as_it_needs_before_the_first_finite_gradient(halvings):
    scaler = LossScaler("cpu", enabled=True)
    assert all(scaler.tolerates(torch.tensor(torch.inf)) for _ in range(halvings))
    assert scaler.tolerates(torch.tensor(1.0)), "found"
    assert [scaler.tolerates(torch.tensor(torch.nan)) for _ in range(3)] == [True, True, False]


def test_a_gradient_that_is_not_finite_at_scale_1_ends_calibration(tmp_path):
    always = [faults.after(step, overflow_above(0.5)) for step in range(20)]
    with pytest.raises(NonFiniteLoss, match="the gradient is inf at step 16; .* bf16 and fp32 have a wider range"):
        TRIAL.replace(precision="fp16").here(tmp_path / "run", *always)
    assert scale(tmp_path / "run") == 1


def test_a_run_calibrates_and_a_stop_in_between_changes_nothing(tmp_path):
    half, needs = TRIAL.replace(precision="fp16"), [faults.after(step, overflow_above(512)) for step in range(20)]
    half.here(tmp_path / "whole", *needs)
    assert scale(tmp_path / "whole") <= 512
    for step in (1, 4):
        with pytest.raises(Interrupted):
            half.here(tmp_path / "run", *needs, faults.kill(step, signal.SIGTERM))
        state = json.loads((newest(tmp_path / "run") / "state.json").read_text())["scaler"]
        assert (state["settled"], state["skipped"]) == (False, step + 1)
    half.here(tmp_path / "run", *needs)
    assert same(tmp_path / "run", tmp_path / "whole")
    assert scale(tmp_path / "run") == scale(tmp_path / "whole")


def test_the_scaler_is_part_of_what_is_resumed(tmp_path):
    half = TRIAL.replace(precision="fp16")
    half.here(tmp_path / "whole", faults.after(3, overflow))
    with pytest.raises(Interrupted):
        half.here(tmp_path / "run", faults.after(3, overflow), faults.kill(8, signal.SIGTERM))
    half.here(tmp_path / "run")
    assert same(tmp_path / "run", tmp_path / "whole")
    assert scale(tmp_path / "run") == scale(tmp_path / "whole") < 65536


def test_hooks_run_once_a_step_with_its_progress(tmp_path):
    calls = []

    class Noting(Tiny):
        def before_step(self, progress):
            calls.append(("before", progress, self.student[0].weight.grad is not None))

        def after_step(self, progress):
            super().after_step(progress)
            calls.append(("after", progress, self.student[0].weight.grad is None))

    config = dataclasses.replace(TRIAL.config, epochs=4 / 8, warmup_epochs=0.0)
    fit(Noting(config), open_pictures(None, config=config), TwoCrops(config), config, tmp_path, run_id="a", device=CPU,
        options=RunOptions(accumulate=2, workers=0))  # fmt: skip
    assert calls == [(when, step / 4, True) for step in range(4) for when in ("before", "after")]


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adafactor"])
def test_momentum_and_a_moving_weight_decay_are_resumed_to_the_same_bits(optimizer, tmp_path):
    trial = TRIAL.replace(optimizer=optimizer, base_lr=0.5, weight_decay=0.01, weight_decay_end=0.1)
    trial.here(tmp_path / "whole", checkpoint_minutes=60)
    with pytest.raises(Interrupted):
        trial.here(tmp_path / "run", faults.kill(7, signal.SIGTERM))
    trial.here(tmp_path / "run")
    assert same(tmp_path / "run", tmp_path / "whole")
    decay = [line["weight_decay"] for line in lines(tmp_path / "whole")]
    assert decay[0] == pytest.approx(0.01) and decay == sorted(decay) and 0.09 < decay[-1] < 0.1


def test_a_peak_below_the_last_learning_rate_is_held_and_does_not_rise(tmp_path):
    TRIAL.replace(min_lr=1.0, warmup_epochs=0.0).here(tmp_path / "run")
    assert {line["lr"] for line in lines(tmp_path / "run")} == {TRIAL.config.lr}


def test_the_log_holds_every_asked_step_and_the_last(whole, tmp_path):
    TRIAL.here(tmp_path / "run", log_every=8)
    assert [line["step"] for line in lines(tmp_path / "run")] == [8, 16, 20]
    last = lines(tmp_path / "run")[-1]
    assert last["epoch"] == 2.5 and last["lr"] > 0 and 0 <= last["data_wait"] <= 1 and last["images_per_second"] > 0
    assert {"loss", "near", "weight_decay", "grad_norm", "seconds", "health/feature_std"} <= last.keys()
    assert lines(whole)[0]["lr"] == 0.0


def test_a_torn_line_of_the_log_costs_that_line_alone(tmp_path):
    with pytest.raises(Interrupted):
        TRIAL.here(tmp_path / "run", faults.kill(9, signal.SIGTERM))
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    TRIAL.here(tmp_path / "run")
    text = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in text[10:]] == list(range(11, 21))
    with pytest.raises(ValueError):
        json.loads(text[9])


def test_a_full_disk_delays_lines_of_the_log_and_is_said_once(tmp_path):
    def write():
        with Log(tmp_path, 6, 0, RunOptions()) as log, warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            for step in range(6):
                size = (tmp_path / "metrics.jsonl").stat().st_size if step else 0
                faults.limit_file_size({2: size + 7, 3: size}.get(step))  # it is cut, and it is refused
                log.write(step, {"loss": 1.0})
        return [str(warning.message) for warning in shown]

    ended = children.run(write)
    assert ended.code == 0 and len(ended.value) == 1 and "cannot be written" in ended.value[0], ended
    kept = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["step"] for line in kept] == [0, 1, 2, 3, 4, 5]


def test_lines_that_never_found_room_are_counted_at_the_end(tmp_path):
    def write():
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            with Log(tmp_path, 3, 0, RunOptions()) as log:
                log.write(0, {"loss": 1.0})
                faults.limit_file_size((tmp_path / "metrics.jsonl").stat().st_size)
                for step in (1, 2):
                    log.write(step, {"loss": 1.0})
        return [str(warning.message) for warning in shown]

    said = children.run(write).value
    assert len(said) == 2 and said[1] == f"2 lines of {tmp_path / 'metrics.jsonl'} are lost"


def test_a_full_disk_under_stderr_costs_the_bar_and_nothing_else(tmp_path):
    class Full(io.StringIO):
        def write(self, text):
            if "loss" in text:
                raise OSError(28, "No space left on device")
            return len(text)

    def show() -> list[str]:
        with contextlib.redirect_stderr(Full()), Log(tmp_path, 6, 0, RunOptions()) as log:
            log.bar.mininterval = 0
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                log.show(loss="1.0")
                log.show(loss="2.0")
        return [str(warning.message) for warning in caught]

    # In a child: tqdm keeps its lock when a write fails, and every later fork would inherit it.
    ended = children.run(show)
    assert ended.code == 0, ended
    [message] = ended.value
    assert message.startswith("the progress bar ends here: ") and "No space left" in message


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_a_tracker_that_fails_changes_nothing(moment, whole, tmp_path):
    def broken(*args, **kwargs):
        raise ConnectionError("no network")

    def train():
        run = types.SimpleNamespace(log=lambda *a, **k: None, finish=lambda: None)
        setattr(run, moment, broken)
        sys.modules["wandb"] = types.SimpleNamespace(init=broken if moment == "init" else lambda **k: run)
        TRIAL.here(tmp_path / "run", track=("wandb:project",), checkpoint_minutes=60)

    ended = children.run(train, warns=True)
    assert ended.code == 0, ended
    assert ended.output.count("no network") == 1, ended
    assert same(tmp_path / "run", whole) and len(lines(tmp_path / "run")) == 20


def test_looking_at_the_features_changes_nothing(whole, tmp_path):
    class Often(Probe):
        def due(self, step):
            return True

    config = TRIAL.config
    seed_step(config.seed)
    method, source = Tiny(config), open_pictures(None, config=config)
    modes = []
    probe = Often(source, eval_view(config), device=CPU)
    handle = faults.before(7, lambda method: modes.extend((method.training, method.teacher.training)))(Tiny, 20)
    fit(
        method,
        source,
        TwoCrops(config),
        config,
        tmp_path,
        run_id="a",
        device=CPU,
        options=RunOptions(workers=0),
        probe=probe,
    )
    handle.remove()
    assert modes == [True, False]  # the method keeps its teacher in eval mode
    assert same(tmp_path, whole)
    assert len([line for line in lines(tmp_path) if "health/rankme" in line]) == 20


def collapse(method):
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.zero_()
        method.teacher[3].bias.fill_(1.0)


def test_collapse_is_named_and_stops_the_run_on_request(tmp_path):
    source = Pictures(64, size=(10, 10))
    probe = Probe(source, eval_view(TRIAL.config), device=CPU)
    method = Tiny(TRIAL.config)
    healthy = probe(method)
    assert healthy["health/feature_std"] > 0.3 and healthy["health/rankme"] > 2 and 0 <= healthy["health/knn"] <= 1
    assert probe.collapse(method, healthy) is None
    collapse(method)
    gone = probe(method)
    assert "features are collapsing: std 0.000" in (probe.collapse(method, gone) or "")
    method.can_collapse = False
    assert probe.collapse(method, gone) is None

    trial = TRIAL.replace(epochs=52 / 8)
    with pytest.warns(UserWarning, match="step 52: the features are collapsing"):
        trial.here(tmp_path / "warned", faults.before(51, collapse), checkpoint_minutes=60)
    with pytest.raises(Collapsed, match="step 52"):
        trial.here(tmp_path / "stopped", faults.before(51, collapse), checkpoint_minutes=60, stop_on_collapse=True)


def test_a_single_picture_is_trained_on_and_tells_of_no_variety(tmp_path):
    source, config = Pictures(1, size=(10, 10)), dataclasses.replace(TRIAL.config, batch_size=1, epochs=3)
    probe = Probe(source, eval_view(config), device=CPU)
    fit(Tiny(config), source, TwoCrops(config), config, tmp_path, run_id="one", device=CPU, probe=probe)
    written = lines(tmp_path)
    assert written[-1]["step"] == 3 and not any(key.startswith("health") for key in written[-1])
    assert list((tmp_path / "checkpoints").iterdir())


def test_unreadable_samples_are_listed_at_the_end(tmp_path, monkeypatch):
    opened = open_pictures(None, config=TRIAL.config)
    opened.bad = {3, 40}
    monkeypatch.setattr("ssl_testing.tiny.open_pictures", lambda data, *, config, split: opened)
    with pytest.warns(UserWarning) as shown:
        TRIAL.here(tmp_path / "run")
    taken = "is unreadable, another sample takes its place: it is a bad one"
    assert sorted(str(warning.message) for warning in shown) == [f"picture {i} {taken}" for i in (3, 40)]
    listed = json.loads((tmp_path / "run" / "bad_samples.json").read_text())
    assert sorted(sample["name"] for sample in listed) == ["picture 3", "picture 40"]
    TRIAL.here(tmp_path / "run")  # nothing is left to do, and nothing is forgotten
    assert json.loads((tmp_path / "run" / "bad_samples.json").read_text()) == listed


def test_pictures_of_one_colour_are_named_at_the_end(tmp_path, monkeypatch):
    opened = open_pictures(None, config=TRIAL.config)
    load = opened.load
    opened.load = lambda index: {"image": torch.zeros_like(load(index)["image"])} if index < 3 else load(index)
    monkeypatch.setattr("ssl_testing.tiny.open_pictures", lambda data, *, config, split: opened)
    with pytest.warns(UserWarning, match=f"3 of {len(opened)} pictures are one colour all over, and teach nothing"):
        TRIAL.here(tmp_path / "run")
    listed = json.loads((tmp_path / "run" / "bad_samples.json").read_text())
    assert sorted((row["name"], row["reason"]) for row in listed) == [
        (f"picture {i}", "one colour all over") for i in range(3)
    ]


def test_a_second_signal_ends_at_once():
    def loop():
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("still here")

    assert children.run(loop).code == -signal.SIGTERM


def test_a_hangup_that_was_ignored_stays_ignored_as_under_nohup():
    def loop():
        for name in (signal.SIGHUP, signal.SIGINT):  # as nohup, and a shell that starts a command with &
            signal.signal(name, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            ignored = not stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            return ignored, stop.requested

    assert children.run(loop).value == (True, True)


def test_too_many_unreadable_samples_are_an_error_after_the_step_is_saved(tmp_path, monkeypatch):
    opened = open_pictures(None, config=TRIAL.config)
    opened.bad = set(range(20))
    monkeypatch.setattr("ssl_testing.tiny.open_pictures", lambda data, *, config, split: opened)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TooManyBadSamples, match="of 64 samples are unreadable, more than 10"):
            TRIAL.here(tmp_path / "run", checkpoint_minutes=60)
    reached = int(newest(tmp_path / "run").name[5:])
    assert 0 < reached < 20
    opened.bad = set()
    TRIAL.here(tmp_path / "run", checkpoint_minutes=60)
    assert min(line["step"] for line in lines(tmp_path / "run")[reached:]) == reached + 1


def test_data_that_vanish_in_mid_run_are_an_error_after_the_last_step_is_saved(tmp_path, monkeypatch):
    opened = open_pictures(None, config=TRIAL.config)
    monkeypatch.setattr("ssl_testing.tiny.open_pictures", lambda data, *, config, split: opened)

    def vanish(method):
        opened.bad = set(range(64))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TooManyBadSamples, match="100 samples in a row are unreadable"):
            TRIAL.here(tmp_path / "run", faults.before(6, vanish), checkpoint_minutes=60)
    assert newest(tmp_path / "run").name == "step-000007"


def test_the_report_of_a_loss_that_is_not_finite_is_no_condition_of_its_error(tmp_path, monkeypatch):
    def full(path, text, encoding):
        raise OSError(28, "No space left on device")

    def fill(method):
        monkeypatch.setattr("pathlib.Path.write_text", full)

    with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 4.*could not be written.*the samples are \[\["):
        TRIAL.here(tmp_path, faults.before(4, fill), faults.poison(4), checkpoint_minutes=60)


def test_signals_are_as_before_after_the_loop():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"is not empty and holds no run \(\['thesis.tex'\]"):
        TRIAL.here(tmp_path)


def test_a_run_killed_before_it_was_recorded_begins_anew(tmp_path):
    for name in (".lock", ".holder", ".run.json.tmp"):
        (tmp_path / name).write_text("half of i")
    TRIAL.replace(epochs=1 / 8, warmup_epochs=0.0).here(tmp_path)
    assert newest(tmp_path).name == "step-000001"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run_id": 1, "config": 3}', "null"])
def test_a_damaged_record_of_a_run_is_named(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(RunError, match=r"run.json is damaged"):
        TRIAL.here(tmp_path)


def test_a_run_that_never_took_a_step_binds_nobody_to_its_settings(tmp_path):
    with pytest.raises(ConfigError, match="fewer than one batch of 500"):
        TRIAL.replace(batch_size=500).here(tmp_path)
    short = TRIAL.replace(epochs=1 / 8, warmup_epochs=0.0)
    short.here(tmp_path)
    with pytest.raises(RunError, match="batch_size: 8 → 4"):
        short.replace(batch_size=4).here(tmp_path)


def test_the_same_data_by_another_name_are_the_same_run(tmp_path, monkeypatch):
    for name in ("pictures", "others"):
        write_pictures(tmp_path / name, TRIAL.config, 16)
    monkeypatch.chdir(tmp_path)
    trial = TRIAL.replace(epochs=1 / 8, warmup_epochs=0.0)
    for data in ("pictures", "pictures/", "./pictures", str(tmp_path / "pictures")):
        dataclasses.replace(trial, data=data).here(tmp_path / "run")
    with pytest.raises(RunError, match="data: 'pictures' → 'others'"):
        dataclasses.replace(trial, data="others").here(tmp_path / "run")


def test_other_data_are_refused_on_resume(tmp_path, monkeypatch):
    trial = TRIAL.replace(epochs=1 / 8, warmup_epochs=0.0)
    trial.here(tmp_path)
    monkeypatch.setattr(Pictures, "fingerprint", lambda self: digest(b"others"))
    with pytest.raises(RunError, match="data_fingerprint: "):
        trial.here(tmp_path)


def test_a_disk_without_room_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"10,000 bytes free, two checkpoints need \d+,\d+: free some"):
        TRIAL.here(tmp_path, faults.before(0, lambda method: pytest.fail("it began")))


def test_weights_that_cannot_be_published_are_an_error_and_the_checkpoint_stays(tmp_path, monkeypatch):
    def full(method, folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "save_pretrained", full)
        with pytest.raises(CheckpointError, match="could not be written .* the last checkpoint is there. Make room"):
            TRIAL.here(tmp_path)
    TRIAL.here(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_groups_cover_what_is_trained():
    named = [name for group in decay_groups(Tiny(TRIAL.config), 0.1) for name, _ in group["params"]]
    assert sorted(named) == [f"student.{i}.{kind}" for i in (0, 3) for kind in ("bias", "weight")]
