"""ssl-core: the thin core under the self-supervised learning packages ssl-*.

Encoders, patches and pixels, devices and processes, moving averages, configs, and in `hub` weights
in and out. Training, data, evaluation and the command line are ssl-train's. Importing this package
imports nothing.
"""

from importlib.metadata import version

__version__ = version("ssl-core")
