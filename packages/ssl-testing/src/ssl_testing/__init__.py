"""ssl-testing: the conformance suite that every method inherits, and the harness under it. For tests alone."""

from importlib.metadata import version

__version__ = version("ssl-testing")
