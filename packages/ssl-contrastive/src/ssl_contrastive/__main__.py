"""The console script `ssl-contrastive`, also `python -m ssl_contrastive`."""

from __future__ import annotations

import sys

from ssl_contrastive.config import RECIPES
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES))


if __name__ == "__main__":
    main()
