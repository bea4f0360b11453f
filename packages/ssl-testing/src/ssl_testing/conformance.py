"""The tests that every method passes. A package inherits them in a few lines:

from ssl_mae.config import RECIPES, MAEConfig
from ssl_testing.conformance import Conformance


class TestMAE(Conformance):
    recipe = RECIPES["mae"]
    config = MAEConfig(image_size=8, patch_size=4, dim=16, depth=1, heads=2, …)

Training runs in children forked from the test process: a test can kill them, and they need no new
Python. The suite runs on the CPU. A method that does not read images sets `source` and `write_data`
as well; see `ssl_testing.suite`.
"""

from __future__ import annotations

from ssl_testing.commands import Commands
from ssl_testing.contract import Contract
from ssl_testing.survival import Survival


class Conformance(Contract, Survival, Commands):
    """A method works with the loop, survives faults, and works from the command line."""
