"""A discrete VAE that turns pictures into visual tokens, and BEiT (arXiv 2106.08254) on them.

from ssl_beit import DVAE, BEiT, train
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("ssl-beit")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
