"""Check the types of every package as Windows has them: calls that only Linux has are errors.

    tox -e types

`ssl-testing` is left out: it forks, so it is for Linux and macOS.
"""

from __future__ import annotations

import subprocess
import sys

from projects import projects


def main() -> None:
    """Exit with basedpyright's code."""
    folders = [project.folder / "src" for name, project in projects().items() if name != "ssl-testing"]
    sys.exit(subprocess.run(["basedpyright", "--pythonplatform", "Windows", *folders], check=False).returncode)


if __name__ == "__main__":
    main()
