"""ssl-train: the engine. One training loop, the data and its views, evaluation, the report and the
command line.

`fit` is the loop and `run` takes a folder from empty to published weights; `data`, `evaluate`,
`report` and `cli` are rooms of their own. Importing this package imports nothing.
"""

from importlib.metadata import version

__version__ = version("ssl-train")
