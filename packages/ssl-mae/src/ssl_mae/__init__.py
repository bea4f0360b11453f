"""Masked autoencoders (MAE, arXiv 2111.06377): pretraining, evaluation, weights.

from ssl_mae import MAE, MAEConfig, train
"""

from importlib.metadata import version

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
__version__ = version("ssl-mae")
