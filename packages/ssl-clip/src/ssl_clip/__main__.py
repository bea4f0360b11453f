"""The console script `ssl-clip`, also `python -m ssl_clip`."""

from __future__ import annotations

import sys

from ssl_clip.config import RECIPES
from ssl_clip.verbs import VERBS
from ssl_train.cli.main import main as run


def main() -> None:
    sys.exit(run(RECIPES, verbs=VERBS))


if __name__ == "__main__":
    main()
