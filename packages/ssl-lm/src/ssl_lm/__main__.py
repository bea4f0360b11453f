"""The console script `ssl-lm`, also `python -m ssl_lm`."""

from __future__ import annotations

import sys

from ssl_lm.config import RECIPES
from ssl_lm.verbs import VERBS
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES, verbs=VERBS))


if __name__ == "__main__":
    main()
