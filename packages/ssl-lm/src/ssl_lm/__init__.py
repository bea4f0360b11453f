"""Language models: GPT (GPT-2), BERT (arXiv 1810.04805) and T5 (arXiv 1910.10683).

from ssl_lm import GPT, GPTConfig, train
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("ssl-lm")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
