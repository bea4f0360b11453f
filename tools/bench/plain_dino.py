"""DINO in the style of the authors' script, on timm's ViT.

It has one pass per crop size, a log-softmax per pair of crops and a weight-normed last layer, and
clips and averages tensor by tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ssl_dino.config import DINOConfig
from ssl_dino.dino import DINO, Network


class PlainHead(nn.Module):
    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        dim, hidden, bottleneck = config.dim, config.head_hidden, config.bottleneck
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = weight_norm(nn.Linear(bottleneck, config.prototypes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, p=2))


class PlainNetwork(nn.Module):
    """Consecutive crops of one size share a pass; the head sees all crops at once."""

    def __init__(self, config: DINOConfig, network: Network) -> None:
        super().__init__()
        self.backbone = timm_vit(config)
        self.backbone.load_state_dict(network.backbone.state_dict())
        self.head = PlainHead(config)
        state = network.head.state_dict()
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            state[f"last_layer.parametrizations.weight.{new}"] = state.pop(f"last_layer.{old}")
        self.head.load_state_dict(state)

    def forward(self, crops: list[Tensor]) -> Tensor:
        widths = torch.tensor([crop.shape[-1] for crop in crops])
        ends = torch.cumsum(torch.unique_consecutive(widths, return_counts=True)[1], 0).tolist()
        parts = [self.backbone(torch.cat(crops[a:b])) for a, b in zip([0, *ends], ends, strict=False)]
        return self.head(torch.cat(parts))


class PlainDINO(nn.Module):
    """Loss of crops (b, c, h, w); updates the centre."""

    def __init__(self, method: DINO) -> None:
        super().__init__()
        self.config = method.config
        self.student, self.teacher = (PlainNetwork(method.config, n) for n in (method.student, method.teacher))
        self.teacher.requires_grad_(False)
        self.register_buffer("center", method.center.clone())

    def forward(self, crops: list[Tensor]) -> Tensor:
        teacher = self.teacher(crops[: self.config.global_crops])
        student = self.student(crops)
        loss = plain_loss(student, teacher, self.center, self.config.global_crops, len(crops))
        with torch.no_grad():
            self.center = 0.9 * self.center + 0.1 * teacher.float().mean(0, keepdim=True)
        return loss


def plain_loss(student: Tensor, teacher: Tensor, center: Tensor, g: int, v: int) -> Tensor:
    """Loss of logits (v·b, k) and (g·b, k), at the temperatures 0.1 and 0.04."""
    predicted = (student.float() / 0.1).chunk(v)
    targets = F.softmax((teacher.float() - center) / 0.04, dim=-1).detach().chunk(g)
    total, terms = 0.0, 0
    for t, target in enumerate(targets):
        for s, x in enumerate(predicted):
            if s != t:
                total, terms = total + torch.sum(-target * F.log_softmax(x, dim=-1), dim=-1).mean(), terms + 1
    return total / terms  # type: ignore[return-value]


def clip_tensors(module: nn.Module, limit: float) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            factor = limit / (parameter.grad.norm(2) + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.mul_(momentum).add_((1 - momentum) * new)


def timm_vit(config: DINOConfig) -> VisionTransformer:
    h, _ = config.size
    return VisionTransformer(
        img_size=h,
        patch_size=config.patch_size,
        num_classes=0,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        dynamic_img_size=True,
    )
