"""The tests that every method passes, inherited in a few lines:

from ssl_testing.conformance import Conformance
from ssl_mae.config import RECIPES, MAEConfig


class TestMAE(Conformance):
    recipe = RECIPES["mae"]
    config = MAEConfig(image_size=8, patch_size=4, dim=16, depth=1, heads=2, …)

Training runs in children forked from the test process, so that a kill is a kill and costs no new Python. The suite runs
on the CPU. A method that reads something else than pictures sets `source` and `write_data` (`ssl_testing.suite`).
"""

from __future__ import annotations

from ssl_testing.commands import Commands
from ssl_testing.contract import Contract
from ssl_testing.survival import Survival


class Conformance(Contract, Survival, Commands):
    """A method keeps its promises to the loop, survives what happens to a run, and works from the command line."""
