"""CLIP: image and text in one space: training, zero-shot classification, search, weights.

from ssl_clip import CLIP, CLIPConfig, ZeroShotClassifier, ImageIndex, train
"""

from importlib.metadata import version

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
__version__ = version("ssl-clip")
