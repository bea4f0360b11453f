"""DINO from lightly's parts on timm's ViT, put together as in its example.

The example is examples/pytorch/dino.py of lightly 1.6: every view passes backbone and head by
itself.
"""

from __future__ import annotations

from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from plain_dino import timm_vit
from torch import Tensor, nn

from ssl_dino.dino import DINO, Network


class LightlyDINO(nn.Module):
    """Loss of crops (b, c, h, w); updates the centre."""

    def __init__(self, method: DINO) -> None:
        super().__init__()
        self.crops = method.config.global_crops
        self.student, self.teacher = (self._pair(method, network) for network in (method.student, method.teacher))
        self.teacher.requires_grad_(False)
        self.criterion = DINOLoss(output_dim=method.config.prototypes, teacher_temp=0.04, student_temp=0.1)

    def _pair(self, method: DINO, network: Network) -> nn.Sequential:
        config = method.config
        backbone = timm_vit(config)
        backbone.load_state_dict(network.backbone.state_dict())
        head = DINOProjectionHead(
            config.dim, config.head_hidden, config.bottleneck, config.prototypes, norm_last_layer=config.norm_last_layer
        )
        for name, value in head.state_dict().items():
            value.copy_(_ours(network, name))
        return nn.Sequential(backbone, head)

    def forward(self, views: list[Tensor]) -> Tensor:
        teacher = [self.teacher(view).float() for view in views[: self.crops]]
        student = [self.student(view).float() for view in views]
        return self.criterion(teacher, student, teacher_temp=0.04)

    def follow(self, momentum: float) -> None:
        update_momentum(self.student, self.teacher, m=momentum)


def _ours(network: Network, name: str) -> Tensor:
    """Our tensor for one of lightly's head, whose `layers` are our `mlp`."""
    head = network.head.state_dict()
    if name.startswith("last_layer."):
        return head["last_layer.weight_g" if name.endswith(("weight_g", "original0")) else "last_layer.weight_v"]
    return head[name.replace("layers.", "mlp.")]
