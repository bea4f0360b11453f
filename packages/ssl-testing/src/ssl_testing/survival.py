"""Tests that a run survives faults and ends with the same bits as an undisturbed one."""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_testing import children, faults
from ssl_testing.state import differing, newest, whole_state
from ssl_testing.suite import Suite
from ssl_train.checkpoint import Checkpoints
from ssl_train.fit import NonFiniteLoss
from ssl_train.optim import build_optimizer
from ssl_train.stop import EXIT_REQUEUE, SIGNALS

STEPS = 20
"""Steps of the run; `Suite.settings` fixes them."""
OFFSETS = 8
"""Sizes at which the writing of a checkpoint is cut."""
MUTATIONS = 50
"""Damaged checkpoints that are tried."""
HINT = (
    "\nA method keeps its state in parameters and buffers. It draws random numbers from torch's generators, which the "
    "loop seeds at every step, or from the sample's own `rng`. Anything else is lost when a run resumes."
)


class Survival(Suite):
    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """An undisturbed run."""
        run = tmp_path_factory.mktemp("reference") / "run"
        ended = cls().trial().train(run)
        assert ended.code == 0, f"{cls.recipe.name} does not train on the suite's data: {ended}"
        return run

    @pytest.mark.parametrize(("workers", "kills"), [(0, [11]), (2, [5, 14])])
    def test_a_killed_run_ends_with_the_same_bits(self, workers, kills, reference, tmp_path):
        for step in kills:
            ended = self.trial().train(tmp_path / "run", faults.kill(step), workers=workers)
            assert ended.code == -signal.SIGKILL, f"the run should be killed in step {step}: {ended}"
            assert newest(tmp_path / "run").name == f"step-{step:06d}"
        self.finish(tmp_path / "run", workers=workers)
        self.assert_same(tmp_path / "run", reference, f"A run with {workers} loader processes, killed in step {kills}")

    def test_a_run_killed_between_micro_batches_ends_with_the_same_bits(self, tmp_path):
        if getattr(self.method(), "accumulates", False) is not True:
            pytest.skip(f"{self.recipe.name} does not accumulate, or does so in one pass")
        self.finish(tmp_path / "whole", accumulate=2)
        ended = self.trial().train(tmp_path / "run", faults.kill(11, part=1), accumulate=2)
        assert ended.code == -signal.SIGKILL, ended
        self.finish(tmp_path / "run", accumulate=2)
        self.assert_same(tmp_path / "run", tmp_path / "whole", "A run killed inside accumulation")

    def test_a_stop_signal_saves_and_the_same_command_resumes(self, reference, tmp_path):
        steps = np.sort(np.random.default_rng(0).choice(STEPS - 1, len(SIGNALS), replace=False)).tolist()
        for step, number in zip(steps, SIGNALS, strict=True):
            ended = self.trial().train(tmp_path / "run", faults.kill(step, number), checkpoint_minutes=60)
            assert ended.code == EXIT_REQUEUE, f"{number.name} in step {step} should exit with code 75: {ended}"
            found = newest(tmp_path / "run").name
            assert found == f"step-{step + 1:06d}", f"{number.name} in step {step} saved {found}"
        self.finish(tmp_path / "run")
        self.assert_same(tmp_path / "run", reference, f"A run stopped in the steps {steps}")

    def test_a_second_run_in_the_same_folder_is_refused(self, tmp_path):
        first = self.trial().start(tmp_path / "run", faults.hold(1, tmp_path / "reached"))
        try:
            while not (tmp_path / "reached").exists():
                assert first.is_alive(), first.output()
            second = self.trial().train(tmp_path / "run")
        finally:
            first.kill()
            first.end()
        assert second.error.startswith("RunError") and f"process {first.pid} on" in second.error, second

    def test_changed_settings_are_refused_with_the_difference(self, reference):
        ended = self.trial(base_lr=0.016).train(reference)
        assert ended.error.startswith("RunError") and "base_lr: 0.032 → 0.016" in ended.error, ended

    def test_a_non_finite_loss_stops_the_run_before_the_weights_change(self, reference, tmp_path):
        run, trial = tmp_path / "run", self.trial()

        def attempt() -> list[str]:
            seen = {}

            def note(method):
                seen["method"] = method
                seen["before"] = {name: p.detach().clone() for name, p in method.named_parameters()}

            with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 7; .*nan-7\.json"):
                trial.here(run, faults.before(7, note), faults.poison(7))
            return differing(seen["before"], dict(seen["method"].named_parameters()))

        ended = children.run(attempt)
        assert ended.code == 0, ended
        assert ended.value == [], f"a NaN in step 7 reached the weights: {ended.value}"
        report = json.loads((run / "nan-7.json").read_text("utf-8"))
        [batch] = [keys for step, keys in enumerate(trial.plan.micro_batches(0, parts=1, rank=0, world=1)) if step == 7]
        assert report["ranks"][0]["samples"] == [sample for _, sample in batch]
        assert len(report["last_losses"]) == 5
        self.finish(run)
        self.assert_same(run, reference, "A run that stopped at a NaN in step 7 and resumed without it")

    def test_a_full_disk_costs_only_checkpoints(self, reference, tmp_path):
        for step, size in enumerate(offsets(reference), 4):
            limit = faults.limit_files({step: size}, fatal=False)
            ended = self.trial().train(tmp_path / "run", limit, faults.kill(step + 1), warns=True)
            assert ended.code == -signal.SIGKILL, f"the run should continue without space for a checkpoint: {ended}"
            assert ended.output.count("training goes on from the last good checkpoint") == 1, ended
            assert newest(tmp_path / "run").name == f"step-{step:06d}", "the last good checkpoint is gone"
        self.finish(tmp_path / "run")
        self.assert_same(tmp_path / "run", reference, f"A run whose disk was full at {OFFSETS} bytes")

    def test_only_a_last_save_that_fails_is_an_error(self, reference, tmp_path):
        limit = faults.limit_files({STEPS - 1: offsets(reference)[3]}, fatal=False)
        ended = self.trial().train(tmp_path / "run", limit, warns=True)
        assert ended.error.startswith(f"CheckpointError: checkpoint of step {STEPS}"), ended
        assert newest(tmp_path / "run").name == f"step-{STEPS - 1:06d}"
        self.finish(tmp_path / "run")
        self.assert_same(tmp_path / "run", reference, "A run whose last save failed")

    def test_a_kill_inside_a_save_leaves_the_checkpoint_before_it(self, reference, tmp_path):
        for size in offsets(reference):
            ended = self.trial().train(tmp_path / "run", faults.limit_files({2: size}, fatal=True), warns=True)
            assert ended.code == -signal.SIGXFSZ, f"the save should be killed at byte {size}: {ended}"
            assert newest(tmp_path / "run").name == "step-000002"
        ended = self.trial().train(tmp_path / "run", warns=True)
        assert ended.code == 0, ended
        named = "tmp-000003 is left over from a save" in ended.output
        assert named, f"the half-written checkpoint is not named: {ended}"
        self.assert_same(tmp_path / "run", reference, f"A run killed in a save at {OFFSETS} bytes")

    def test_a_damaged_checkpoint_is_never_loaded(self, reference, tmp_path):
        names = [f"step-{step:06d}" for step in (STEPS - 1, STEPS)]
        good = {name: whole_state(reference / "checkpoints" / name) for name in names}
        run_id = json.loads((reference / "run.json").read_text("utf-8"))["run_id"]
        method, rng = self.method(), np.random.default_rng(0)
        optimizer = build_optimizer(method, method.config)
        for _ in range(MUTATIONS):
            shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
            shutil.copytree(reference / "checkpoints", tmp_path / "checkpoints")
            files = sorted((tmp_path / "checkpoints" / names[1]).iterdir())
            victim = files[int(rng.integers(len(files)))]
            how = faults.mutate(victim, rng)
            with warnings.catch_warnings(record=True) as shown:
                warnings.simplefilter("always")
                step = Checkpoints(tmp_path / "checkpoints", run_id).restore(method, optimizer)
            loaded = {f"model: {name}": tensor for name, tensor in method.state_dict().items()}
            expected = {name: t for name, t in good[f"step-{step:06d}"].items() if name in loaded}
            assert differing(loaded, expected) == [], f"{how}: another state was loaded"
            # state.json may change in its white space alone
            assert step == STEPS - 1 or victim.name == "state.json", f"{how} was not noticed"
            assert (step == STEPS) == (not shown), f"{how} was skipped without a warning"

    def finish(self, run: Path, **options: Any) -> None:
        """Repeat the command until the run is complete."""
        ended = self.trial().train(run, **options)
        assert ended.code == 0, f"the same command should resume and finish: {ended}"

    def assert_same(self, run: Path, reference: Path, what: str) -> None:
        """The newest checkpoints of two runs are equal bit for bit."""
        assert newest(run).name == newest(reference).name
        lines = differing(whole_state(newest(run)), whole_state(newest(reference)))
        shown = "\n  ".join(lines[:8])
        assert not lines, f"{what}, ends with other values than an undisturbed run:\n  {shown}{HINT}"


def offsets(run: Path) -> list[int]:
    """OFFSETS evenly spaced sizes in bytes, below that of the largest file of a checkpoint."""
    largest = max(path.stat().st_size for path in newest(run).iterdir())
    return [round(largest * (i + 0.5) / OFFSETS) for i in range(OFFSETS)]
