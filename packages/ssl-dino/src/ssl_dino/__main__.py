"""The console script `ssl-dino`, also `python -m ssl_dino`."""

from __future__ import annotations

import sys

from ssl_dino.config import RECIPES
from ssl_dino.verbs import VERBS
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES, verbs=VERBS))


if __name__ == "__main__":
    main()
