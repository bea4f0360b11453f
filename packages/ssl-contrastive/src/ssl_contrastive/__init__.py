"""Contrastive and self-distilling pretraining: SimCLR (arXiv 2002.05709), MoCo (arXiv 1911.05722,
2003.04297), BYOL (arXiv 2006.07733) and SimSiam (arXiv 2011.10566).

from ssl_contrastive import SimCLR, SimCLRConfig, train
"""

from importlib.metadata import version

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
__version__ = version("ssl-contrastive")
