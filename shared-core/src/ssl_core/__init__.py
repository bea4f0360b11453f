"""ssl-core: the thin core that every self-supervised method package stands on.

`vit`, `patches`, `device`, `distributed`, `ema` and `method` are the core itself; `train`, `data`,
`hub`, `evaluate` and `testing` surround it and are imported when used. Importing this package
imports nothing.
"""

from importlib.metadata import version

__version__ = version("ssl-core")
