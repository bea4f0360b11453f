"""Many faults, counted: runs of minutes, started by hand, with the harness of the suites.

    python -m tools.faults                            everything, on the tiny method and on MAE
    python -m tools.faults kills --count 100 --method mae
    python -m tools.faults ranks --ranks 4
    python -m tools.faults mutations --count 2000
    python -m tools.faults index --count 1000

Run it from the root of the repository, and copy the printed table to docs/benchmarks.md. The exit
code is 1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tools.faults.index import index
from tools.faults.kills import kills, signals
from tools.faults.memory import memory
from tools.faults.methods import METHODS
from tools.faults.mutations import mutations
from tools.faults.ranks import ranks
from tools.faults.table import Row

PER_METHOD = {"kills": (kills, 100), "signals": (signals, 20), "mutations": (mutations, 2000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [*PER_METHOD, "index", "ranks", "memory"]
    wanted = f"{', '.join(kinds)}; all by default"
    parser.add_argument("what", nargs="*", choices=[*kinds, []], metavar="what", help=wanted)
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--count", type=int, help="how many faults; the promised number by default")
    parser.add_argument("--ranks", type=int, default=2, help="processes under torchrun")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in args.what or kinds:
            for name in args.method if what in PER_METHOD else [""]:
                place, start = Path(folder, f"{what}-{name}"), time.perf_counter()
                place.mkdir()
                if what in PER_METHOD:
                    run, promised = PER_METHOD[what]
                    new = run(METHODS[name], place, args.count or promised, args.seed)
                elif what == "index":
                    new = index(place, args.count or 1000, args.seed)
                elif what == "ranks":
                    new = ranks(METHODS["mae"], place, args.count or 10, args.seed, args.ranks)
                else:
                    new = memory()
                seconds = time.perf_counter() - start
                rows += new
                for row in new:
                    print(f"{what} {name}: {row.kept} of {row.tried} in {seconds:.0f} s", file=sys.stderr, flush=True)
    print(Row.table(rows))
    sys.exit(any(row.kept < row.tried for row in rows))


if __name__ == "__main__":
    main()
