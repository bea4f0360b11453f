"""The console script `ssl-beit`, also `python -m ssl_beit`."""

from __future__ import annotations

import sys

from ssl_beit.config import RECIPES
from ssl_beit.verbs import VERBS
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES, verbs=VERBS))


if __name__ == "__main__":
    main()
