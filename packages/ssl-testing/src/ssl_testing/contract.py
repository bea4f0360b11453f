"""Tests of what the training loop and the evaluation rely on in a method."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.exc
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core import distributed
from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_core.device import seed_step
from ssl_core.errors import InputError
from ssl_core.method import load
from ssl_core.pixels import normalize
from ssl_testing import children
from ssl_testing.cards import check_card
from ssl_testing.faults import KeepDouble, mutate_json
from ssl_testing.formats import check_released
from ssl_testing.state import apart, differing, hidden_state, newest
from ssl_testing.suite import Suite
from ssl_train.classifier import Classifier, check_encoder
from ssl_train.finetune import FineTune, finetune, settings
from ssl_train.fit import passes, wrap
from ssl_train.optim import build_optimizer
from ssl_train.options import RunOptions
from ssl_train.processes import process_group

EXACT = 1e-10
"""Largest relative difference between two float64 computations that must agree."""
DAMAGED = 300
"""Damaged configs that are tried."""
BACKEND = "aot_eager_default_partitioner"
"""Compiles the step; importing "aot_eager" takes seconds."""


class Contract(Suite):
    def test_a_damaged_config_is_valid_or_a_config_error(self):
        text, cls, rng = json.dumps(to_dict(self.config)), type(self.config), np.random.default_rng(0)
        assert from_dict(cls, json.loads(text)) == self.config, "the config changes on its way to JSON and back"
        for _ in range(DAMAGED):
            damaged = mutate_json(text, rng)
            try:
                from_dict(cls, json.loads(damaged))
            except (ConfigError, json.JSONDecodeError):
                continue
            except Exception as error:
                pytest.fail(f"{type(error).__name__}: {error}, not a ConfigError, for {damaged[:2000]}")

    def test_every_trained_weight_gets_a_gradient_and_every_output_is_a_scalar(self):
        def step() -> tuple[list[str], list[str]]:
            method = self.method().train()
            [batch] = self.first_step(method.config)
            outputs = method(batch, 0.0)
            outputs["loss"].backward()
            idle = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
            return idle, [key for key, value in outputs.items() if value.numel() != 1]

        idle, wide = self.child(step)
        assert idle == [], f"no gradient reaches {idle}, so DDP fails on the second step. Freeze with requires_grad"
        assert wide == [], f"forward returns {wide}, which are not scalars; only scalars are logged"

    def test_optimiser_groups_name_their_parameters(self):
        method = self.method()
        groups = build_optimizer(method, method.config).param_groups
        for group in groups:
            assert group.get("param_names"), (
                "param_groups must give (name, parameter) pairs: checkpoints are keyed by name"
            )
            assert "lr_scale" in group, "every group of param_groups needs an lr_scale"
        named = [name for group in groups for name in group["param_names"]]
        assert sorted(named) == sorted(name for name, p in method.named_parameters() if p.requires_grad)

    def test_three_steps_in_bf16_are_finite_and_leave_fp32_weights(self, tmp_path):
        ended = self.trial(precision="bf16", epochs=3 / 8, warmup_epochs=0.0).train(tmp_path / "run")
        assert ended.code == 0, f"the method does not train under bf16 autocast; look for mixed dtypes: {ended}"
        for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines():
            odd = {k: v for k, v in json.loads(line).items() if not math.isfinite(v)}
            assert not odd, f"under bf16 autocast the log holds {odd}: compute the loss in fp32"
        state = load_file(newest(tmp_path / "run") / "model.safetensors")
        own = self.method().state_dict()
        assert {k: str(v.dtype) for k, v in state.items()} == {k: str(v.dtype) for k, v in own.items()}

    def test_two_processes_have_the_gradient_of_one(self, tmp_path):
        config = self.settings(**self.noiseless)

        def step(name: str) -> None:
            with process_group(60):
                save_file(self.one_step(config), tmp_path / f"{name}{distributed.rank()}.safetensors")

        for ended in (children.run(lambda: step("one")), *children.run_ranks(2, lambda: step("rank"))):
            assert ended.code == 0, ended
        one, *ranks = (load_file(tmp_path / f"{name}.safetensors") for name in ("one0", "rank0", "rank1"))
        for state in ranks:
            self.assert_close(state, one, "two processes of 4 samples", "one process of 8")

    def test_micro_batches_add_up_to_the_batch_or_are_refused(self, tmp_path):
        if not getattr(self.method(), "accumulates", False):
            ended = self.trial().train(tmp_path / "run", accumulate=2)
            assert ended.error.startswith("ConfigError"), (
                f"the method says it does not accumulate, but it trained: {ended}"
            )
            return
        config = self.settings(batch_size=32, **self.noiseless)

        def steps() -> None:
            save_file(self.one_step(config), tmp_path / "whole.safetensors")
            save_file(self.one_step(config, parts=4), tmp_path / "parts.safetensors")

        self.child(steps)
        parts, whole = (load_file(tmp_path / f"{name}.safetensors") for name in ("parts", "whole"))
        self.assert_close(parts, whole, "4 micro-batches of 8", "a batch of 32; is `accumulates = True` right?")

    def test_the_step_compiles_without_a_graph_break(self):
        def compare() -> tuple[float, float] | str:
            # dynamo itself causes this warning for an autograd.Function
            warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
            losses = []
            for compiled in (False, True):
                method = self.method().train()
                model = torch.compile(method, fullgraph=True, backend=BACKEND) if compiled else method
                [batch] = self.first_step(method.config)
                seed_step(0)
                try:
                    outputs = model(batch, 0.25)
                except torch._dynamo.exc.TorchDynamoException as error:
                    return str(error)
                outputs["loss"].backward()
                losses.append(float(outputs["loss"].detach()))
            return losses[0], losses[1]

        load_compiler()
        losses = self.child(compare)
        assert not isinstance(losses, str), f"torch.compile breaks the graph of the step:\n{losses}"
        eager, compiled = losses
        assert compiled == pytest.approx(eager, rel=1e-4), "the compiled step computes a different loss"

    def test_state_dict_is_the_whole_truth(self):
        def steps() -> tuple[list[str], list[str]]:
            method = self.method().train()
            [batch] = self.first_step(method.config)
            optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
            seen = []
            for progress in (0.1, 0.5):
                method(batch, progress)["loss"].backward()
                for hook in ("before_step", None, "after_step"):
                    optimizer.step() if hook is None else getattr(method, hook, lambda p: None)(progress)
                optimizer.zero_grad()
                seen.append(hidden_state(method))
            first, second = seen
            changed = sorted(k for k in first.keys() | second.keys() if first.get(k) != second.get(k))
            return changed, [name for name, value in method.state_dict().items() if not isinstance(value, Tensor)]

        changed, others = self.child(steps)
        assert changed == [], (
            f"training changes {changed}, which state_dict() does not hold: use register_buffer, make it a function "
            "of progress, or clear it in after_step"
        )
        assert others == [], f"state_dict() holds {others}, which are not tensors"

    def test_saved_weights_load_to_the_same_bits(self, tmp_path):
        saved = self.method()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in saved.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.rand(tensor.shape, generator=generator).to(tensor) / 100)
        loaded = type(saved).from_pretrained(saved.save_pretrained(tmp_path / "weights"))
        assert loaded.config == saved.config, "config.json gives a different config back"
        lines = differing(loaded.state_dict(), saved.state_dict())
        assert lines == [], f"saved and loaded weights differ; is a row of the key map missing? {lines[:5]}"
        features = self.encode(saved, self.inputs())
        assert torch.equal(self.encode(loaded, self.inputs()), features), "the loaded method gives different features"

    def test_what_the_model_card_says_is_true(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        check_card(self.method(), self.recipe, self.inputs(2), tmp_path / "published")

    def test_folders_of_every_released_format_load(self):
        folder = Path(inspect.getfile(type(self))).parent / "formats"
        check_released(folder, self.recipe.name, self.method(), self.inputs(2))

    def test_a_fine_tuned_folder_opens_again_with_equal_predictions(self, tmp_path):
        method, source, inputs = self.method(), self.samples(), self.inputs()
        try:
            check_encoder(method)
        except InputError as error:
            pytest.skip(str(error))

        def tune() -> tuple[list[str], bool]:
            network = Classifier.of(method, source.classes)
            recipe = settings(network, len(source), 1 / 8, pretrained=True)
            config = dataclasses.replace(recipe, precision="fp32", warmup_epochs=0.0)
            labels = torch.from_numpy(source.labels[: len(inputs)])
            FineTune(network, config)({"views": [inputs], "label": labels}, 0.0)["loss"].backward()
            idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
            finetune(network, source, source, config, tmp_path, options=RunOptions(device="cpu", workers=0))
            opened = Classifier.from_pretrained(network.save_pretrained(tmp_path / "finetuned"))
            with torch.inference_mode():
                return idle, torch.equal(opened.probabilities(inputs), network.eval().probabilities(inputs))

        idle, equal = self.child(tune)
        assert idle == [], f"no gradient reaches {idle} in fine-tuning, so DDP fails on the second step"
        assert equal, "the folder gives other predictions; is a tensor that they need no part of the encoder?"

    def test_features_are_one_finite_row_per_sample_whatever_else_is_in_the_batch(self):
        method, inputs = self.method(), self.inputs()
        state = {k: v.clone() for k, v in method.state_dict().items()}
        features = self.encode(method, inputs)
        assert features.ndim == 2 and len(features) == len(inputs), f"encode gives {tuple(features.shape)}, not (b, d)"
        assert torch.isfinite(features).all(), "encode gives NaN or infinite features"
        assert torch.equal(self.encode(method, inputs), features), "encode is random in eval mode"
        assert differing(method.state_dict(), state) == [], "encode changes the method in eval mode"
        alone = torch.cat([self.encode(method, inputs[i : i + 1]) for i in range(len(inputs))])
        gap = (alone - features).abs().max().item()
        scale = features.abs().max().item()
        assert gap <= 1e-5 * max(1.0, scale), (
            f"features depend on the other samples of the batch: they move by {gap:.2g}"
        )

    def test_raw_and_normalised_images_have_the_same_features(self):
        method, inputs = self.method(), self.inputs()
        if inputs.dtype != torch.uint8:
            pytest.skip("the method does not read images")
        normalised = normalize(inputs, method.config.mean, method.config.std)
        gap = (self.encode(method, normalised) - self.encode(method, inputs)).abs().max().item()
        assert gap <= 1e-5, f"uint8 and normalised float images differ by {gap:.2g}: use ssl_core.pixels.normalize"
        deep = (inputs.to(torch.int32) * 257).to(torch.uint16)
        gap = (self.encode(method, deep) - self.encode(method, inputs)).abs().max().item()
        assert gap <= 1e-5, f"uint8 images and the same in 16 bits differ by {gap:.2g}: use ssl_core.pixels.as_float"

    def one_step(self, config: Any, parts: int = 1) -> dict[str, Tensor]:
        """Gradients and state after a step of gradient descent in float64, on this rank."""
        torch.set_default_dtype(torch.float64)
        with KeepDouble():
            seed_step(config.seed)
            method = load(self.recipe.method)(config).double().train()
            model = wrap(method, torch.device("cpu"))
            samples = self.first_step(config, parts)
            if getattr(method, "accumulates", False) == "jointly":
                # KeepDouble does not reach what backward recomputes, so images become float here.
                samples = [
                    {**part, "views": [normalize(v, config.mean, config.std) for v in part["views"]]}
                    for part in samples
                ]
            for batch, share in passes(method, samples):
                seed_step(config.seed, 0)
                (model(_double(batch), 0.25)["loss"] * share).backward()
            getattr(method, "before_step", lambda progress: None)(0.25)
            gradients = {f"gradient of {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
            with torch.no_grad():
                for parameter in method.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
            getattr(method, "after_step", lambda progress: None)(0.25)
        state = {**gradients, **{k: v.clone() for k, v in method.state_dict().items()}}
        return {name: tensor.contiguous() for name, tensor in state.items()}

    def assert_close(self, a: dict[str, Tensor], b: dict[str, Tensor], what: str, against: str) -> None:
        lines = apart(a, b, EXACT)
        shown = "\n  ".join(lines[:8])
        assert not lines, f"{what} take a different step from {against}:\n  {shown}"

    def child(self, function: Any) -> Any:
        """What `function` returns in a child. AssertionError if the child fails."""
        ended = children.run(function)
        assert ended.code == 0, ended
        return ended.value


@cache
def load_compiler() -> None:
    """Import what a first compilation imports: seconds, once here instead of in each child.

    A compilation itself would start autograd's threads, after which no forked child can train.
    """
    for module in ("torch._dynamo.backends.debugging", "torch._functorch.aot_autograd"):
        import_module(module)


def _double(batch: Any) -> Any:
    """A batch with its floating-point tensors in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, list):
        return [_double(part) for part in batch]
    return {key: _double(value) for key, value in batch.items()}
