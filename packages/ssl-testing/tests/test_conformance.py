"""The conformance suite passes for a correct method and fails for each kind of flawed one."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_core.ema import ema_update
from ssl_testing.conformance import Conformance
from ssl_testing.tiny import RECIPES, Tiny, TinyConfig


class TestTiny(Conformance):
    recipe = RECIPES["tiny"]
    config = TinyConfig()
    noiseless = {"dropout": 0.0}


class Counting(Tiny):
    """Counts its steps outside its state_dict."""

    steps = 0

    def forward(self, batch, progress):
        outputs = super().forward(batch, progress)
        return {**outputs, "loss": outputs["loss"] * (1 + self.steps)}

    def after_step(self, progress):
        super().after_step(progress)
        self.steps += 1


class Forgetting(Tiny):
    """Keeps its centre in a buffer that is not saved."""

    def __init__(self, config):
        super().__init__(config)
        del self.centre
        self.register_buffer("centre", torch.zeros(config.dim), persistent=False)


class Drawing(Tiny):
    """Draws from numpy's global generator."""

    def forward(self, batch, progress):
        outputs = super().forward(batch, progress)
        return {**outputs, "loss": outputs["loss"] * (1 + np.random.random())}


class InBatch(Tiny):
    """Takes negatives from the batch, but claims that it accumulates."""

    def forward(self, batch, progress):
        first, second = (F.normalize(self.student(self._pixels(view)), dim=1) for view in batch["views"])
        self.keys.append(first.detach())
        return {"loss": F.cross_entropy(first @ second.T, torch.arange(len(first)))}


class Local(Tiny):
    """Queues only the features of its own process."""

    @torch.no_grad()
    def after_step(self, progress):
        keys = torch.cat(self.keys)
        self.keys.clear()
        self.queue.copy_(torch.cat([F.normalize(keys, dim=1), self.queue])[: len(self.queue)])
        ema_update(self.teacher, self.student, self.config.momentum)


class Idle(Tiny):
    """Has weights that no gradient reaches."""

    def forward(self, batch, progress):
        outputs = super().forward(batch, progress)
        return {**outputs, "loss": outputs["loss"] + 0 * self.student[3].bias.detach().sum()}

    def __init__(self, config):
        super().__init__(config)
        self.spare = torch.nn.Parameter(torch.zeros(3))


class Asking(Tiny):
    """Reads a number from a tensor in the middle of the step."""

    def forward(self, batch, progress):
        outputs = super().forward(batch, progress)
        return outputs if outputs["loss"].item() > -1e9 else {}


class Whitening(Tiny):
    """Its features depend on the whole batch."""

    def encode(self, images):
        features = super().encode(images)
        return features - features.mean(0)


class Dropping(Tiny):
    """Leaves dropout on, so that it encodes the same images differently each time."""

    def encode(self, images):
        return F.dropout(super().encode(images), 0.5)


class Tall(Tiny):
    """Returns features with three dimensions."""

    def encode(self, images):
        return super().encode(images)[:, None]


class Twice(Tiny):
    """Doubles float images, which are normalised already."""

    def _pixels(self, images):
        return super()._pixels((images.float() * 2).to(images.dtype) if images.is_floating_point() else images)


KILL = "test_a_killed_run_ends_with_the_same_bits"
STATE = "test_state_dict_is_the_whole_truth"
GRADIENT = "test_every_trained_weight_gets_a_gradient_and_every_output_is_a_scalar"
RANKS = "test_two_processes_have_the_gradient_of_one"
PARTS = "test_micro_batches_add_up_to_the_batch_or_are_refused"
COMPILE = "test_the_step_compiles_without_a_graph_break"
FEATURES = "test_features_are_one_finite_row_per_sample_whatever_else_is_in_the_batch"
PIXELS = "test_raw_and_normalised_images_have_the_same_features"

FLAWS = [
    (Counting, STATE, r"training changes \['Counting.steps'\]"),
    (Counting, KILL, "ends with other values"),
    (Forgetting, STATE, r"training changes \['Forgetting.centre'\]"),
    (Forgetting, KILL, "ends with other values"),
    (Drawing, KILL, "ends with other values"),
    (InBatch, PARTS, "is `accumulates = True` right"),
    (InBatch, RANKS, "take a different step from one process"),
    (Local, RANKS, "queue: values differ"),
    (Idle, GRADIENT, r"no gradient reaches \['spare'\]"),
    (Asking, COMPILE, "torch.compile breaks the graph of the step"),
    (Whitening, FEATURES, "depend on the other samples of the batch"),
    (Dropping, FEATURES, "random in eval mode"),
    (Tall, FEATURES, r"not \(b, d\)"),
    (Twice, PIXELS, "uint8 and normalised float images differ"),
]


@pytest.mark.parametrize(("flaw", "test", "message"), FLAWS, ids=lambda value: getattr(value, "__name__", None))
def test_the_suite_sees_a_method_that(flaw, test, message, tmp_path):
    suite = TestTiny()
    suite.recipe = dataclasses.replace(RECIPES["tiny"], method=f"{__name__}:{flaw.__name__}")
    given = {"workers": 0, "kills": [11], "tmp_path": tmp_path, "reference": tmp_path / "whole"}
    needs = inspect.signature(getattr(suite, test)).parameters
    if "reference" in needs:
        assert suite.trial().train(tmp_path / "whole").code == 0
    with pytest.raises(AssertionError, match=message):
        getattr(suite, test)(**{name: given[name] for name in needs})
