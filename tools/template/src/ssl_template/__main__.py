"""The console script `ssl-template`, also `python -m ssl_template`."""

from __future__ import annotations

import sys

from ssl_template.config import RECIPES
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES))


if __name__ == "__main__":
    main()
