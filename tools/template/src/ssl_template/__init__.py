"""Rotation prediction (RotNet, arXiv 1803.07728): pretraining, evaluation, weights.

from ssl_template import RotNet, RotNetConfig, train
"""

from importlib.metadata import version

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
__version__ = version("ssl-template")
