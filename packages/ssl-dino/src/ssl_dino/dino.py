"""Emerging Properties in Self-Supervised Vision Transformers (DINO, Caron et al. 2021, arXiv
2104.14294).

A student sees many crops of an image, a teacher only the large ones. From each crop the student
predicts what the teacher says about another crop. The teacher is a moving average of the student.
Its output is centred, so that one prototype cannot win every image, and sharpened, so that it does
not become uniform.

    L = 1/(g·v − g) · Σ_t Σ_{s ≠ t} mean_b H(softmax((z_t − c)/τ_t), softmax(z_s/τ_s))
                                                                                (equations 1 to 3)
    c ← m_c · c + (1 − m_c) · mean of z_t over crops and samples of the whole batch   (equation 4)
    θ_t ← λ · θ_t + (1 − λ) · θ_s after the optimiser's step, λ from 0.996 to 1 by a cosine
                                                                                     (section 3.1)

A step does this, in this order: set τ_t and λ for its place in the run; run teacher and student and
compute the loss; backward; clip each gradient tensor; cancel the gradients of the last layer in the
first epoch; AdamW; update centre and teacher.

Deviations from the authors' code, none in the result of a step: the learning rate reaches its peak
one step later, as in the other packages; the backbone runs once per size of crop, whatever their
order.

Expected (the authors' README), k-NN/linear on ImageNet: ViT-S/16 74.5/77.0 %, S/8 78.3/79.7, B/16
76.1/78.2, B/8 77.4/80.1, ResNet-50 67.5/75.3; 100 epochs of S/16 with the defaults 69.3/74.0.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.batch_norm import sync_batch_norm
from ssl_core.ema import ema_update
from ssl_core.encoder import ImageEncoder, PooledViT, build_encoder
from ssl_core.errors import InputError
from ssl_core.hub.pretrained import Pretrained
from ssl_core.resnet import ResNet
from ssl_core.schedule import cosine
from ssl_dino.config import DINOConfig
from ssl_dino.heads import DINOHead
from ssl_dino.loss import center_and_sharpen, cross_view_entropy


def dense_loss(student: Tensor, teacher: Tensor, center: Tensor, student_temp: float, teacher_temp: float) -> Tensor:
    """Equations 1 to 3 as they are written, for logits (v, b, k) and (g, b, k).

    Training computes the same by `loss.dino_loss`, and `loss.py` says why the two are equal.
    """
    targets = ((teacher - center) / teacher_temp).softmax(-1).detach()  # g b k
    log_probs = (student / student_temp).log_softmax(-1)  # v b k
    terms = []
    for t, target in enumerate(targets):
        for s, log_prob in enumerate(log_probs):
            if s != t:  # no crop predicts itself
                terms.append(-(target * log_prob).sum(-1).mean())
    return torch.stack(terms).mean()


class Network(nn.Module):
    """A backbone and a head: crops (b, c, h, w) of any sizes to logits (v, b, k)."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.backbone = build_encoder(config)
        self.head = DINOHead(
            self.backbone.features,
            prototypes=config.prototypes,
            hidden=config.head_hidden,
            bottleneck=config.bottleneck,
            layers=config.head_layers,
            bn=config.head_bn,
            unit=config.norm_last_layer,
        )
        sync_batch_norm(self.backbone)

    def forward(self, crops: list[Tensor]) -> Tensor:
        features = features_of(self.backbone, crops)  # v b d
        logits = self.head(features.flatten(0, 1))  # v·b k, because batch norm spans all crops
        return logits.unflatten(0, features.shape[:2])  # v b k


def features_of(backbone: nn.Module, crops: list[Tensor]) -> Tensor:
    """Features (v, b, d) of crops (b, c, h, w), with one call of the backbone per size of crop."""
    sizes: dict[torch.Size, list[int]] = {}
    for i, crop in enumerate(crops):
        sizes.setdefault(crop.shape, []).append(i)
    features: list[Any] = [None] * len(crops)
    for indices in sizes.values():
        together = backbone(torch.cat([crops[i] for i in indices]))  # n·b d
        for i, part in zip(indices, together.chunk(len(indices)), strict=True):
            features[i] = part
    return torch.stack(features)


class DINO(nn.Module, ImageEncoder, Pretrained):
    """Student, teacher and centre, built from a `DINOConfig`. `encode` is the teacher's backbone.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std.
    """

    config_class = DINOConfig
    layout = "ssl_dino.convert:LAYOUTS[dino]"
    can_collapse = True
    center: Tensor
    new_heads: Tensor

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.config = config
        self.accumulates = config.is_vit and not config.head_bn  # batch norm spans the batch
        self.student = Network(config)

        # The teacher starts equal to the student, and never drops a path.
        self.teacher = Network(dataclasses.replace(config, drop_path=0.0)).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.register_buffer("center", torch.zeros(1, config.prototypes))

        # True where the weights were a backbone alone, so that the heads are trained first.
        self.register_buffer("new_heads", torch.tensor(False))
        self.pending: list[Tensor] = []

    @property
    def encoder(self) -> PooledViT | ResNet:
        """The teacher's backbone, which is evaluated and published."""
        return self.teacher.backbone

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Loss of `batch["views"]`, of which the first `global_crops` are the teacher's too.

        Three more scalars show a collapse: the teacher's entropy, its KL divergence to the student
        and the centre's norm.
        """
        crops = [self.normalized(view) for view in batch["views"]]  # v of b c h w

        # The teacher sees the large crops, the student all of them.
        with torch.no_grad():
            teacher = self.teacher(crops[: self.config.global_crops])  # g b k
        student = self.student(crops)  # v b k

        # equations 1 to 3
        targets = center_and_sharpen(teacher, self.center, teacher_temperature(self.config, progress))
        loss = cross_view_entropy(student, targets.probs, self.config.student_temp)

        # What equation 4 needs of every micro-batch: the sum of the logits and how many there are.
        if self.training:
            total = teacher.to(self.center.dtype).sum((0, 1))  # k
            self.pending.append(torch.cat([total, total.new_tensor([teacher.shape[0] * teacher.shape[1]])]))
        return {
            "loss": loss,
            "teacher_entropy": targets.entropy,
            "kl": loss.detach() - targets.entropy,
            "center_norm": self.center.norm(),
        }

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Clip each gradient tensor, then cancel the gradients of what must not move yet.

        That is the last layer in the first epochs, and the backbone while new heads are trained.
        """
        if self.config.clip_each is not None:
            gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
            clip_each(gradients, self.config.clip_each)

        epoch, warmup = epoch_of(self.config, progress), self.config.head_warmup_epochs
        if epoch < self.config.freeze_last_layer:
            self.student.head.last_layer.zero_grad(set_to_none=True)
        if not self.new_heads:
            return
        if epoch >= warmup:
            self.new_heads.fill_(False)
            return
        if progress == 0:
            start = "the weights that this run starts from have no heads of DINO"
            warnings.warn(f"{start}: for the first {warmup} epochs only the heads are trained", stacklevel=2)
        self.student.backbone.zero_grad(set_to_none=True)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Update the centre by the mean over all processes (equation 4), and the teacher by the
        student that has just stepped."""
        sums = distributed.all_reduce_sum(torch.stack(self.pending).sum(0))  # k+1
        self.pending.clear()
        self.center.lerp_(sums[None, :-1] / sums[-1], 1 - self.config.center_momentum)
        ema_update(self.teacher, self.student, teacher_momentum(self.config, progress))

    def collapse(self, scores: dict[str, float], progress: float) -> str | None:
        """The cause, if the scores of the last step show that all images get the same answer.

        There is no verdict during the warm-up and the first tenth of the run: to a random network
        all images look alike.
        """
        if progress < 0.1 or progress * self.config.epochs < self.config.warmup_epochs:
            return None
        share = scores["teacher_entropy"] / math.log(self.config.prototypes)
        facts = f"teacher entropy {share:.1%} of its maximum, KL {scores['kl']:.2g}"
        if share > 0.99:
            return f"the teacher is uniform ({facts}): it is not sharpened enough, lower --teacher-temp"
        if scores["kl"] < 1e-3:
            return f"the teacher says the same of all images ({facts}): the centre lags behind, lower --center-momentum"
        return None

    def attention_maps(self, images: Tensor, block: int = -1) -> Tensor:
        """How much the teacher's CLS attends to each patch, per head of a block, (b, heads, h, w).

        Raises InputError for a ResNet, which has no attention.
        """
        if not isinstance(self.encoder, PooledViT):
            raise InputError(f"a {self.config.backbone} has no attention: maps need backbone = 'vit'")
        return self.encoder.attention_maps(self.normalized(images), block)


def teacher_temperature(config: DINOConfig, progress: float) -> float:
    """τ_t of the epoch: linear from `warmup_teacher_temp` to `teacher_temp`, then constant."""
    epoch, ramp = epoch_of(config, progress), config.warmup_teacher_temp_epochs
    if epoch >= ramp:
        return config.teacher_temp
    share = epoch / max(1, ramp - 1)  # the last epoch of the ramp has `teacher_temp` already
    return config.warmup_teacher_temp + (config.teacher_temp - config.warmup_teacher_temp) * share


def teacher_momentum(config: DINOConfig, progress: float) -> float:
    """λ of the step: half a cosine from `teacher_momentum` towards 1."""
    return cosine(progress, config.teacher_momentum, 1.0)


def epoch_of(config: DINOConfig, progress: float) -> int:
    """Whole epochs done. The first step of an epoch may lie a rounding error below it."""
    return int(progress * config.epochs + 1e-6)


def clip_each(gradients: list[Tensor], limit: float) -> None:
    """Scale every tensor whose norm exceeds `limit` down to it, in place."""
    if gradients:
        factors = [(limit / (norm + 1e-6)).clamp(max=1) for norm in torch._foreach_norm(gradients)]
        torch._foreach_mul_(gradients, factors)
