"""DINO's step against one written out, its schedules, collapse, starts from a backbone alone."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.batch_norm import BatchNorm
from ssl_core.config import to_dict
from ssl_core.device import seed_step
from ssl_core.errors import InputError
from ssl_dino.config import RECIPES, DINOConfig, vit_small
from ssl_dino.dino import DINO, clip_each, features_of, teacher_momentum, teacher_temperature
from ssl_dino.heads import DINOHead
from ssl_testing import children
from ssl_testing.trial import Trial
from ssl_train.cli.main import defaults, main
from ssl_train.optim import build_optimizer
from ssl_train.processes import process_group

VIT: Any = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "drop_path": 0.0}
HEAD: Any = {"prototypes": 12, "head_hidden": 16, "bottleneck": 8, "norm_last_layer": False}
CROPS: Any = {"crop_pct": 1.0, "local_crops": 3, "local_size": 4}
TEACHER: Any = {"teacher_temp": 0.07, "warmup_teacher_temp_epochs": 3, "teacher_momentum": 0.9}
TINY = DINOConfig(**VIT, **HEAD, **CROPS, **TEACHER, epochs=10, warmup_epochs=1, batch_size=4)
RESNET: Any = {"backbone": "resnet18", "width": 4, "small_stem": True}


def built(config: DINOConfig = TINY, seed: int = 0) -> DINO:
    seed_step(seed)
    return DINO(config).train()


def batch(config: DINOConfig = TINY, b: int = 4, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    sizes = [config.size] * config.global_crops + [(config.local_size,) * 2] * config.local_crops
    return {"views": [torch.randn(b, config.in_channels, *size, generator=generator) for size in sizes]}


def step(method: DINO, optimizer: torch.optim.Optimizer, data: dict, progress: float) -> dict[str, Tensor]:
    """What the training loop does with a batch."""
    outputs = method(data, progress)
    outputs["loss"].backward()
    method.before_step(progress)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(progress)
    return outputs


class WrittenOut:
    """The published algorithm in single tensors: each crop and each pair alone, plain descent."""

    def __init__(self, method: DINO, lr: float) -> None:
        self.config, self.lr = method.config, lr
        self.student = {k: v.clone().requires_grad_() for k, v in method.student.state_dict().items()}
        self.teacher = {k: v.clone() for k, v in method.teacher.state_dict().items()}
        self.center, self.network = method.center.clone(), method.student

    def logits(self, weights: dict[str, Tensor], crop: Tensor) -> Tensor:
        """The backbone called on one crop, the head written out."""
        body = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
        x = torch.func.functional_call(self.network.backbone, body, (crop,))
        for i in (0, 2):
            x = F.gelu(F.linear(x, weights[f"head.mlp.{i}.weight"], weights[f"head.mlp.{i}.bias"]))
        x = F.linear(x, weights["head.mlp.4.weight"], weights["head.mlp.4.bias"])
        x = x / x.square().sum(1, keepdim=True).sqrt()
        v, g = weights["head.last_layer.weight_v"], weights["head.last_layer.weight_g"]
        return x @ (g * v / v.square().sum(1, keepdim=True).sqrt()).T

    def step(self, views: list[Tensor], progress: float) -> float:
        config, epoch = self.config, int(progress * self.config.epochs + 1e-9)
        ramp = [
            config.warmup_teacher_temp + i * (config.teacher_temp - config.warmup_teacher_temp) / 2 for i in range(3)
        ]
        temp = ramp[epoch] if epoch < 3 else config.teacher_temp
        momentum = 1 + 0.5 * (config.teacher_momentum - 1) * (1 + math.cos(math.pi * progress))
        says = [self.logits(self.teacher, view) for view in views[: config.global_crops]]
        total, terms = 0.0, 0
        for t, z in enumerate(says):
            target = ((z - self.center) / temp).exp()
            target = target / target.sum(1, keepdim=True)
            for s, view in enumerate(views):
                if s == t:
                    continue
                x = self.logits(self.student, view) / config.student_temp
                log = x - x.exp().sum(1, keepdim=True).log()
                total, terms = total - (target * log).sum(1).mean(), terms + 1
        assert terms == len(views) * len(says) - len(says)
        loss = total / terms
        names = list(self.student)
        gradients = dict(zip(names, torch.autograd.grad(loss, list(self.student.values())), strict=True))
        for name, gradient in gradients.items():
            norm = gradient.square().sum().sqrt()
            if config.clip_each is not None and norm + 1e-6 > config.clip_each:
                gradients[name] = gradient * config.clip_each / (norm + 1e-6)
            if "last_layer" in name and epoch < config.freeze_last_layer:
                continue
            self.student[name] = (self.student[name] - self.lr * gradients[name]).detach().requires_grad_()
        rows = torch.cat(says)
        self.center = 0.9 * self.center + 0.1 * rows.mean(0, keepdim=True)
        for name in self.teacher:
            self.teacher[name] = momentum * self.teacher[name] + (1 - momentum) * self.student[name].detach()
        return float(loss.detach())


@pytest.mark.parametrize("clip", [3.0, 0.05, None])
def test_steps_equal_the_published_algorithm_written_out(clip):
    torch.set_default_dtype(torch.float64)
    try:
        config = replace(TINY, local_crops=8, clip_each=clip)
        method = built(config).double()
        expected, optimizer = WrittenOut(method, 0.5), torch.optim.SGD(method.student.parameters(), lr=0.5)
        for i, progress in enumerate((0.0, 0.05, 0.12, 0.25, 0.6)):
            data = {"views": [view.double() for view in batch(config, seed=i)["views"]]}
            loss = expected.step(data["views"], progress)
            assert step(method, optimizer, data, progress)["loss"].item() == pytest.approx(loss, rel=1e-10)
        for ours, theirs in ((method.student, expected.student), (method.teacher, expected.teacher)):
            for name, value in ours.state_dict().items():
                assert torch.allclose(value, theirs[name].detach(), rtol=1e-8, atol=1e-10), name
        assert torch.allclose(method.center, expected.center, rtol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_backbone_runs_once_per_size_and_the_crops_keep_their_order():
    method, calls = built(), []
    hook = method.student.backbone.register_forward_hook(lambda m, x, y: calls.append(tuple(x[0].shape)))
    crops = batch()["views"]
    mixed = [crops[2], crops[0], crops[3], crops[1], crops[4]]
    together = features_of(method.student.backbone, mixed)
    assert calls == [(12, 3, 4, 4), (8, 3, 8, 8)]
    hook.remove()
    alone = torch.stack([method.student.backbone(crop) for crop in mixed])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(method.student(mixed), torch.stack([method.student.head(x) for x in alone]), atol=1e-5)


def test_a_local_crop_of_96_pixels_has_36_patches():
    config = replace(vit_small(), depth=1, prototypes=8, head_hidden=8)
    with torch.device("meta"):
        backbone = DINO(config).student.backbone
        assert backbone.embed(torch.empty(1, 3, 96, 96)).shape == (1, 37, 384)


def test_schedules_begin_and_end_as_published():
    config = replace(vit_small(), teacher_temp=0.07, warmup_teacher_temp_epochs=30)
    steps = 100 * 125
    temps = [teacher_temperature(config, epoch * 125 / steps) for epoch in range(100)]
    assert temps[0] == 0.04 and temps[29] == temps[99] == 0.07
    assert temps[:30] == pytest.approx([0.04 + 0.03 * i / 29 for i in range(30)])
    assert teacher_temperature(config, 124 / steps) == 0.04, "it changes by epoch, not by step"
    assert teacher_temperature(replace(config, warmup_teacher_temp_epochs=0), 0.0) == 0.07
    short = [replace(config, warmup_teacher_temp_epochs=ramp) for ramp in (1, 2)]
    assert [[teacher_temperature(x, i / 100) for i in range(3)] for x in short] == [[0.04, 0.07, 0.07]] * 2
    assert teacher_momentum(config, 0) == pytest.approx(0.996)
    assert teacher_momentum(config, 0.5) == pytest.approx(0.998)
    assert 0.99999 < teacher_momentum(config, (steps - 1) / steps) < 1
    assert (config.base_lr * config.batch_size / 256, config.min_lr, config.warmup_epochs) == (0.002, 1e-6, 10)
    assert (config.weight_decay, config.weight_decay_end, config.clip_each) == (0.04, 0.4, 3.0)


def test_the_head_has_the_published_sizes_and_starts_as_published():
    torch.manual_seed(0)
    head = DINOHead(384, prototypes=65536, hidden=2048, bottleneck=256, layers=3, bn=False, unit=False)
    assert sum(p.numel() for p in head.parameters()) == 22_352_128
    assert head.last_layer.weight_g.shape == (65536, 1) and head.last_layer.weight_v.shape == (65536, 256)
    assert torch.equal(head.last_layer.weight_g, torch.ones(65536, 1))
    assert head.last_layer.weight_v.abs().max() <= 1 / 16, "the direction is PyTorch's default"
    for linear in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05) and not linear.bias.any()


def test_with_fixed_lengths_every_logit_is_a_cosine_and_the_lengths_do_not_train():
    method = built(replace(TINY, norm_last_layer=True))
    assert not method.student.head.last_layer.weight_g.requires_grad
    optimizer = build_optimizer(method, method.config)
    for i in range(3):
        step(method, optimizer, batch(seed=i), 0.2)
    assert torch.equal(method.student.head.last_layer.weight_g, torch.ones(12, 1))
    assert method.student(batch()["views"]).abs().max() <= 1 + 1e-6
    assert built().student.head.last_layer.weight_g.requires_grad


def test_the_last_layer_keeps_its_bits_in_the_first_epoch_and_moves_after_it():
    method = built()
    optimizer, before = build_optimizer(method, method.config), method.student.head.last_layer.weight_v.clone()
    for i, progress in enumerate((0.0, 0.05, 0.099)):
        step(method, optimizer, batch(seed=i), progress)
        assert torch.equal(method.student.head.last_layer.weight_v, before)
    assert not torch.equal(method.student.head.mlp[0].weight, built().student.head.mlp[0].weight)
    step(method, optimizer, batch(), 0.1)
    assert not torch.equal(method.student.head.last_layer.weight_v, before)


def test_the_centre_follows_the_mean_of_the_head_by_its_momentum():
    method = built()
    seen = method.teacher([view for view in batch()["views"][:2]]).mean((0, 1))
    step(method, build_optimizer(method, method.config), batch(), 0.2)
    assert torch.allclose(method.center[0], 0.1 * seen, atol=1e-6)
    constant = torch.randn(12)
    for n in range(2, 6):
        method.pending.append(torch.cat([8 * constant, torch.tensor([8.0])]))
        method.center.copy_(method.center if n > 2 else torch.zeros(1, 12))
        method.after_step(0.2)
        assert torch.allclose(method.center[0], (1 - 0.9 ** (n - 1)) * constant, atol=1e-5)


def test_a_loss_in_eval_mode_leaves_the_centre_alone():
    method = built().eval()
    method(batch(), 0.2)
    assert method.pending == []


def test_the_teacher_averages_the_student_after_its_step():
    method = built()
    old = {name: p.clone() for name, p in method.teacher.named_parameters()}
    step(method, build_optimizer(method, method.config), batch(), 0.3)
    rate = teacher_momentum(TINY, 0.3)
    new = dict(method.student.named_parameters())
    for name, p in method.teacher.named_parameters():
        assert torch.allclose(p, rate * old[name] + (1 - rate) * new[name], atol=1e-6)
        assert not p.requires_grad and p.grad is None


def test_the_teacher_never_drops_a_path_and_starts_equal_to_the_student():
    method = built(replace(TINY, drop_path=0.5))
    assert [block.drop_path.rate for block in method.student.backbone.blocks] == [0, 0.5]
    assert [block.drop_path.rate for block in method.teacher.backbone.blocks] == [0, 0]
    views = batch()["views"]
    assert torch.equal(method.teacher(views), method.teacher(views))
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, method.student.state_dict()[name])


def test_clipping_is_per_tensor_and_leaves_small_gradients_alone():
    small, large = torch.tensor([0.3, 0.4]), torch.tensor([[30.0, 40.0]])
    clip_each([small, large], 3.0)
    assert torch.equal(small, torch.tensor([0.3, 0.4]))
    assert torch.allclose(large, torch.tensor([[1.8, 2.4]]), rtol=1e-5)
    clip_each([], 3.0)


def test_one_dimensional_weights_are_not_decayed_and_decay_rises_over_the_run():
    groups = build_optimizer(built(), TINY).param_groups
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    assert {group["weight_decay"] for group in groups} == {0.0, 0.04}


def test_batch_norm_in_the_head_spans_all_crops_and_refuses_accumulation():
    method = built(replace(TINY, head_bn=True))
    assert not method.accumulates and built().accumulates
    norm = method.student.head.mlp[1]
    assert isinstance(norm, BatchNorm)
    views = batch()["views"]
    method.student(views)
    x = features_of(method.student.backbone, views).flatten(0, 1)
    assert torch.allclose(norm.running_mean, 0.1 * method.student.head.mlp[0](x).mean(0), atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet18", "vit"])
def test_two_processes_have_the_centre_and_the_statistics_of_one(backbone, tmp_path):
    """With batch norm, too, which the conformance suite's tiny network has not."""
    config = replace(TINY, **{**RESNET, "backbone": backbone}, head_bn=True, image_size=16, local_size=8, local_crops=1)
    views = [view.double() for view in batch(config, b=8)["views"]]

    def one_step(name: str) -> None:
        torch.set_default_dtype(torch.float64)
        with process_group(60):
            rank, world = distributed.rank(), distributed.world_size()
            method = built(config).double()
            part = {"views": [view.chunk(world)[rank] for view in views]}
            method(part, 0.3)["loss"].backward()
            for p in method.student.parameters():
                distributed.all_reduce_sum(p.grad).div_(world)
            with torch.no_grad():
                for p in method.student.parameters():
                    p -= 0.1 * p.grad
            method.after_step(0.3)
            torch.save(method.state_dict(), tmp_path / f"{name}{rank}.pt")

    for ended in (children.run(lambda: one_step("one")), *children.run_ranks(2, lambda: one_step("rank"))):
        assert ended.code == 0, ended
    one, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("one0", "rank0", "rank1"))
    for state in ranks:
        for name, value in one.items():
            assert torch.allclose(state[name].double(), value.double(), rtol=1e-8, atol=1e-10), name


# Collapse ------------------------------------------------------------------------------


def trained(config: DINOConfig, steps: int = 150, lr: float = 0.5) -> tuple[DINO, dict[str, float]]:
    """A method after `steps` of descent on a few pictures, and the scores of the last step."""
    method = built(config)
    optimizer = torch.optim.SGD([p for p in method.student.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    scores: dict[str, Tensor] = {}
    for i in range(steps):
        scores = step(method, optimizer, batch(config, b=8, seed=i % 4), 0.3 + 0.5 * i / steps)
    return method, {key: float(value.detach()) for key, value in scores.items()}


def test_without_centring_the_teacher_names_one_prototype_and_the_cause_is_reported():
    method, scores = trained(replace(TINY, center_momentum=1.0, teacher_momentum=0.9, freeze_last_layer=0))
    assert scores["kl"] < 1e-3 and scores["teacher_entropy"] < 0.05 * math.log(12)
    assert "the same of all images" in method.collapse(scores, 0.8)
    assert "centre lags behind" in method.collapse(scores, 0.8)


def test_without_sharpening_the_teacher_is_uniform_and_the_cause_is_reported():
    blunt = replace(TINY, teacher_temp=2.0, warmup_teacher_temp=2.0, student_temp=1.0, freeze_last_layer=0)
    method, scores = trained(blunt, steps=40)
    assert scores["teacher_entropy"] > 0.99 * math.log(12)
    assert "the teacher is uniform" in method.collapse(scores, 0.8)
    assert "not sharpened enough" in method.collapse(scores, 0.8)


def test_neither_a_healthy_teacher_nor_a_young_one_raises_an_alarm():
    method = built()
    healthy = {"teacher_entropy": 0.4 * math.log(12), "kl": 0.5}
    assert method.collapse(healthy, 0.8) is None
    sharp = {"teacher_entropy": 1e-3, "kl": 0.2}
    assert method.collapse(sharp, 0.8) is None, "sharp targets that the student does not meet are no collapse"
    uniform = {"teacher_entropy": math.log(12), "kl": 1e-6}
    assert method.collapse(uniform, 0.05) is None and method.collapse(uniform, 0.2) is not None


def test_a_collapsed_run_stops_with_the_cause_when_it_was_asked_to(tmp_path):
    blunt = {"teacher_temp": 2.0, "warmup_teacher_temp": 2.0, "warmup_teacher_temp_epochs": 0, "student_temp": 1.0}
    config = replace(TINY, **blunt, batch_size=8, precision="fp32")
    recipe = replace(RECIPES["dino"], source="ssl_testing.tiny:open_pictures")
    ended = Trial(recipe, config).train(tmp_path / "run", stop_on_collapse=True)
    assert ended.error.startswith("Collapsed") and "the teacher is uniform" in ended.error, ended


# Starts from another backbone ----------------------------------------------------------


def test_new_heads_are_trained_first_with_a_warning(tmp_path):
    torch.save(built(seed=3).teacher.backbone.state_dict(), tmp_path / "backbone.pth")
    with pytest.warns(UserWarning, match="without center, teacher.head"):
        method = DINO.from_pretrained(tmp_path / "backbone.pth", config=replace(TINY, head_warmup_epochs=2)).train()
    before = method.student.backbone.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    optimizer = build_optimizer(method, method.config)
    with pytest.warns(UserWarning, match="for the first 2 epochs only the heads are trained"):
        step(method, optimizer, batch(), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(method, optimizer, batch(seed=1), 0.19)
    for network in (method.student, method.teacher):
        for name, value in network.backbone.state_dict().items():
            assert torch.allclose(value, before[name], atol=1e-7), name
    assert not torch.equal(method.student.head.mlp[0].weight, built(seed=3).student.head.mlp[0].weight)
    assert method.center.any() and method.new_heads
    step(method, optimizer, batch(seed=2), 0.2)
    assert not torch.equal(method.student.backbone.norm.weight, before["norm.weight"])
    assert not method.new_heads, "from here on it trains like any DINO"


def test_the_command_starts_from_a_backbone_with_the_presets_heads_and_crops(tmp_path):
    config = replace(TINY, dim=64, heads=1, image_size=16, local_size=8, pos_interp="offset")
    torch.save(built(config).teacher.backbone.state_dict(), tmp_path / "backbone.pth")
    given = replace(TINY, prototypes=9, local_crops=1, epochs=1, warmup_epochs=0, batch_size=32, precision="fp32")
    (tmp_path / "given.json").write_text(json.dumps(to_dict(given)))
    recipe = replace(RECIPES["dino"], source="ssl_testing.tiny:open_pictures")

    def typed() -> dict:
        line = ["train", "--config", "given.json", "--init", "./backbone.pth", "--out", "run", "--local-size", "8"]
        os.chdir(tmp_path)
        sizes = ["--image-size", "16", "--dim", "64", "--heads", "1"]
        assert main({recipe.name: recipe}, [*line, *sizes, "--device", "cpu", "--workers", "0"]) == 0
        return json.loads((tmp_path / "run" / "config.json").read_text())["ssl_core"]["config"]

    ended = children.run(typed, warns=True)
    assert ended.code == 0, ended
    assert (ended.value["prototypes"], ended.value["local_crops"], ended.value["dim"]) == (9, 1, 64)
    assert "these are initialised anew" in ended.output and "only the heads are trained" in ended.output
    method = DINO.from_pretrained(tmp_path / "run")
    assert method.new_heads, "its only epoch was the warm-up"
    assert {"prototypes", "dim"} < set(method.architecture()), "its heads are kept, though they are still warming up"
    with pytest.warns(UserWarning, match="these are initialised anew"):
        alone = DINO.from_pretrained(tmp_path / "backbone.pth")
    assert (
        not set(alone.architecture()) & {"prototypes", "local_crops", "teacher_temp"} and "dim" in alone.architecture()
    )


def test_a_preset_of_a_resnet_becomes_a_vit_when_it_starts_from_one(tmp_path):
    torch.save(built(replace(TINY, dim=64, heads=1)).teacher.backbone.state_dict(), tmp_path / "backbone.pth")
    with pytest.warns(UserWarning, match="these are initialised anew"):
        config = defaults(RECIPES["dino"], ["--preset", "demo", "--init", str(tmp_path / "backbone.pth")]).config
        assert DINO.from_pretrained(tmp_path / "backbone.pth", config=config).new_heads
    assert (config.backbone, config.dim, config.image_size) == ("vit", 64, 8)
    assert (config.prototypes, config.base_lr, config.crop_pct) == (64, 4e-3, 1.0)


def test_a_run_from_scratch_has_no_head_warm_up():
    method = built()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(method, build_optimizer(method, TINY), batch(), 0.0)
    assert not torch.equal(method.student.backbone.norm.weight, nn.LayerNorm(16).weight)


# The rest of the interface -------------------------------------------------------------


def test_attention_maps_need_a_vit():
    method = built(replace(TINY, **RESNET)).eval()
    assert method.patch_features(torch.randn(1, 3, 16, 16)).shape == (1, 2, 2, 32)
    with pytest.raises(InputError, match="a resnet18 has no attention"):
        method.attention_maps(torch.randn(1, 3, 16, 16))
    maps = built().eval().attention_maps(torch.randn(2, 3, 8, 12))
    assert maps.shape == (2, 2, 2, 3)


def test_scores_of_a_step_are_consistent():
    outputs = built()(batch(), 0.2)
    assert outputs["kl"].item() == pytest.approx(outputs["loss"].item() - outputs["teacher_entropy"].item(), abs=1e-6)
    assert outputs["kl"] > 0 and 0 < outputs["teacher_entropy"] <= math.log(12) and outputs["center_norm"] == 0
    assert json.dumps({key: float(value.detach()) for key, value in outputs.items()})


@pytest.mark.parametrize("fields", [{}, RESNET], ids=["vit", "resnet"])
def test_fine_tuning_trains_the_teachers_backbone_though_it_is_frozen_here(fields):
    from ssl_train.classifier import Classifier

    method = built(replace(TINY, **fields))
    tuned = Classifier.of(method, ["a", "b"])
    assert all(p.requires_grad for p in tuned.encoder.parameters())
    assert not any(p.requires_grad for p in method.encoder.parameters()), "the method's own stays as it was"
    own = method.encoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in tuned.encoder.state_dict().items())
