"""Self-distillation with no labels: DINO's pretraining (arXiv 2104.14294), and DINOv2 (arXiv
2304.07193) as an encoder.

from ssl_dino import DINO, DINOConfig, DINOv2, train
"""

from importlib.metadata import version

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
__version__ = version("ssl-dino")
