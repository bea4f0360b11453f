"""Train every method on every folder of `ssl_testing.strangers`, with nothing but its name.

    python tools/strangers.py              every method
    python tools/strangers.py mae simclr   some of them

Each method has a process of its own. A row of the output is a method, a folder, the seconds of its
three steps with the report, and "ok" or what is missing. Exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from projects import methods

from ssl_core.method import load

MADE = ("model.safetensors", "report.html", "README.md", "figures/captions.json")
SHORT = ("--max-steps", "3", "--workers", "0", "--device", "cpu")


def try_all(package: str, name: str) -> None:
    """Print a row per folder; SystemExit with 1 if a run failed."""
    from ssl_testing.strangers import STRANGERS, write_strangers
    from ssl_train.cli.main import main

    warnings.simplefilter("ignore")  # those of tiny data
    recipe, failed = load(f"{package}.config:RECIPES[{name}]"), False
    for folder, stranger in STRANGERS.items():
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            write_strangers(Path(place, "data"), stranger)
            if package == "ssl_clip":
                for number, file in enumerate(sorted(Path(place, "data").rglob("picture*"))):
                    file.with_suffix(".txt").write_text(f"picture {number} of a stranger\n", "utf-8")
            said, start = io.StringIO(), time.perf_counter()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    code = main({name: recipe}, ["train", "--data", "data", "--out", "run", *SHORT])
                except Exception:
                    code = traceback.format_exc()
            seconds = time.perf_counter() - start
            missing = [file for file in MADE if not Path("run", file).is_file()]
            if not code and not missing:
                missing = [] if steps(Path("run")) == 3 else ["three steps"]
        failed |= bool(code or missing)
        verdict = f"exit code {code}, without {missing}\n{said.getvalue()}" if code or missing else "ok"
        print(f"{name:16} {folder:32} {seconds:5.1f} s  {verdict}", flush=True)
    sys.exit(failed)


def steps(run: Path) -> int:
    return json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    asked = parser.parse_args().methods
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    spawn, failed = multiprocessing.get_context("spawn"), False
    for project in methods().values():
        package = project.module.name
        for name in load(f"{package}.config:RECIPES"):
            if package == "ssl_lm" or (asked and name not in asked):  # text has no pictures
                continue
            child = spawn.Process(target=try_all, args=(package, name))
            child.start()
            child.join()
            failed |= child.exitcode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
