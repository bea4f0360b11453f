"""The console script `ssl-pretext`, also `python -m ssl_pretext`."""

from __future__ import annotations

import sys

from ssl_core.cli import main as run
from ssl_pretext.config import RECIPES


def main() -> None:
    sys.exit(run(RECIPES))


if __name__ == "__main__":
    main()
