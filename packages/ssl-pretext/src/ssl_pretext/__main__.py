"""The console script `ssl-pretext`, also `python -m ssl_pretext`."""

from __future__ import annotations

import sys

from ssl_pretext.config import RECIPES
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES))


if __name__ == "__main__":
    main()
