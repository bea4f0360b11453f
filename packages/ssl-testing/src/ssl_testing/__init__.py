"""ssl-testing: the conformance suite that every method inherits, and the harness it runs on.

A dependency of tests only.
"""

from importlib.metadata import version

__version__ = version("ssl-testing")
