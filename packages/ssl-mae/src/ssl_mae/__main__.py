"""The console script `ssl-mae`, also `python -m ssl_mae`."""

from __future__ import annotations

import sys

from ssl_mae.config import RECIPES
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES))


if __name__ == "__main__":
    main()
