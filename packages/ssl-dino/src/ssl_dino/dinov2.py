"""DINOv2: Learning Robust Visual Features without Supervision (Oquab et al. 2023, arXiv
2304.07193), and its models with registers (Darcet et al. 2023, arXiv 2309.16588), as encoders.

A ViT with LayerScale. ViT-g has SwiGLU MLPs. Models with registers carry four tokens that stand for
no patch and keep the attention maps clean. CLS and patch tokens are read after the last norm. The
training of DINOv2 is not here.

Results (the authors' README), k-NN/linear on ImageNet without → with registers: S 79.0/81.1 →
79.1/80.9 %, B 82.1/84.5 → 82.0/84.6, L 83.5/86.3 → 83.8/86.7, g 83.5/86.5 → 83.7/87.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.encoder import ImageEncoder, init_linear
from ssl_core.hub.pretrained import Pretrained
from ssl_core.vit import Mlp, ViT, pooled
from ssl_dino.config import DINOv2Config

LAYER_SCALE = 1e-5
"""Initial factor of every branch (section 4, appendix A). Published models hold trained ones."""


class SwiGLU(nn.Module):
    """w3(silu(a) · b) with a, b = w12(x): the MLP of DINOv2's ViT-g, as the authors lay out its
    weights.

    Two thirds as wide as `hidden`, rounded up to a multiple of 8, so that it has about the
    parameters of an `Mlp`.
    """

    def __init__(self, *, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class DINOv2(nn.Module, ImageEncoder, Pretrained):
    """The encoder, built from a `DINOv2Config`.

    Images are uint8 (b, c, h, w) as decoded, or float already normalised with the config's mean and
    std. Height and width may be any multiples of the patch size.
    """

    config_class = DINOv2Config
    layout = "ssl_dino.convert:LAYOUTS[dinov2]"

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViT.of(
            config, layer_scale=LAYER_SCALE, mlp=SwiGLU if config.swiglu else Mlp, registers=config.registers
        )

        # This stands for a hidden patch in iBOT's part of the training. It is kept because folders
        # of transformers hold it.
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim))

        # the authors' initialisation
        self.apply(init_linear)
        nn.init.trunc_normal_(self.encoder.pos_embed, std=0.02)
        nn.init.normal_(self.encoder.cls_token, std=1e-6)
        if self.encoder.register_tokens is not None:
            nn.init.normal_(self.encoder.register_tokens, std=1e-6)

    def encode(self, images: Tensor) -> Tensor:
        """Features (b, d): the CLS token or the mean of the patches, as `config.pool` says."""
        tokens = self.encoder(self.normalized(images))  # b 1+n d
        return pooled(tokens, self.config.pool)

    def attention_maps(self, images: Tensor, block: int = -1) -> Tensor:
        """How much CLS attends to each patch, per head of one block, (b, heads, h, w)."""
        return self.encoder.attention_maps(self.normalized(images), block)
