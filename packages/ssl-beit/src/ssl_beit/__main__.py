"""The console script `ssl-beit`, also `python -m ssl_beit`."""

from __future__ import annotations

import sys

from ssl_core.cli import main as run
from ssl_beit.config import RECIPE


def main() -> None:
    sys.exit(run([RECIPE]))


if __name__ == "__main__":
    main()
