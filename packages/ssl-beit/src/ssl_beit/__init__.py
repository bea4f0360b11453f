"""A discrete VAE that makes visual tokens of pictures, and BEiT (arXiv 2106.08254), which learns from them.

from ssl_beit import DVAE, BEiT, logit_laplace_loss, block_mask
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_beit.beit import BEiT, beit_loss
    from ssl_beit.config import BEiTConfig, DVAEConfig
    from ssl_beit.dvae import DVAE, gumbel_noise, kl_to_uniform, logit_laplace_loss
    from ssl_beit.training import train
    from ssl_beit.views import block_mask

__version__ = version("ssl-beit")
__all__ = [
    "DVAE", "BEiT", "BEiTConfig", "DVAEConfig", "beit_loss", "block_mask", "gumbel_noise", "kl_to_uniform",
    "logit_laplace_loss", "train",
]  # fmt: skip

_HOME = {
    **dict.fromkeys(("BEiT", "beit_loss"), "ssl_beit.beit"),
    **dict.fromkeys(("BEiTConfig", "DVAEConfig"), "ssl_beit.config"),
    **dict.fromkeys(("DVAE", "gumbel_noise", "kl_to_uniform", "logit_laplace_loss"), "ssl_beit.dvae"),
    "block_mask": "ssl_beit.views",
    "train": "ssl_beit.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_beit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
