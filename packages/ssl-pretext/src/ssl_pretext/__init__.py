"""Pretext tasks: rotation (arXiv 1803.07728), jigsaw puzzles (1603.09246), colorization
(1603.08511) and relative patch location (1505.05192). Pretraining, evaluation, weights.

from ssl_pretext import Rotation, RotationConfig, train
"""

from importlib.metadata import version

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
__version__ = version("ssl-pretext")
