"""The encoder's weights elsewhere: transformers' `vit` and `resnet`, timm and torchvision.

The head stays here: nobody else has a place for it.
"""

from __future__ import annotations

from ssl_core.hub.encoders import encoder_layout
from ssl_template.config import RotNetConfig

LAYOUTS = {"rotation": encoder_layout(RotNetConfig, heads=("head.",))}
