"""How far a reader walks through our files from a command to a forward pass.

    python tools/walk.py            the three walks below
    python tools/walk.py --list     and every file that is entered, in order

A walk follows a real run, with `sys.setprofile`, and looks at calls of functions in `ssl_*` files:

- a function counts at its first call alone, since a reader reads it once;
- a file is entered by a call from another file, unless a function of it is waiting for the call to
  return: the reader comes back to that one anyway;
- a return is an entry into a file that was left before, for another file.

Code that runs while a module is imported does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SHORT = ["--preset", "demo", "--batch-size", "8", "--epochs", "1", "--warmup-epochs", "0", "--workers", "0"]


class Arrived(BaseException):
    """The walk is where it was to end."""


def walk(run: Callable[[], Any], arrived: Callable[[str, set[str]], bool] | None = None) -> list[tuple[str, str]]:
    """(file, function) of every entry into a file while `run()` runs.

    `arrived(function, waiting files)` says that the walk ends with this call; else it ends with
    `run`.
    """
    read: set[CodeType] = set()
    entries: list[tuple[str, str]] = []

    def on_call(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (file := _ours(frame.f_code)) is None:
            return
        waiting, importing = _waiting(frame.f_back)
        if importing or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # the body of a class or a module
            return
        if frame.f_code not in read and file not in waiting and (not entries or entries[-1][0] != file):
            entries.append((file, frame.f_code.co_qualname))
        read.add(frame.f_code)
        if arrived is not None and arrived(frame.f_code.co_qualname, waiting):
            raise Arrived

    sys.setprofile(on_call)
    try:
        run()
    except Arrived:
        pass
    finally:
        sys.setprofile(None)
    return entries


def _ours(code: CodeType) -> str | None:
    """The file of ours that holds `code`, as `ssl_mae/mae.py`, or None."""
    _, found, inside = code.co_filename.replace(os.sep, "/").rpartition("/ssl_")
    return f"ssl_{inside}" if found else None


def _waiting(frame: FrameType | None) -> tuple[set[str], bool]:
    """(our files with a function that waits for this call, whether one of our modules is being
    imported)."""
    files, importing = set(), False
    while frame is not None:
        if (file := _ours(frame.f_code)) is not None:
            files.add(file)
            importing |= frame.f_code.co_name == "<module>"
        frame = frame.f_back
    return files, importing


def counts(entries: list[tuple[str, str]]) -> tuple[int, int]:
    """(files, returns) of a walk."""
    files = {file for file, _ in entries}
    return len(files), len(entries) - len(files)


def write_pictures(folder: Path, number: int = 16) -> Path:
    """Two classes of grey pictures."""
    from PIL import Image

    for i in range(number):
        path = folder / f"class-{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, i, i)).save(path)
    return folder


def train(folder: Path, arrived: Callable[[str, set[str]], bool]) -> list[tuple[str, str]]:
    """The walk of `ssl-mae train --data` pictures in `folder`."""
    from ssl_mae.__main__ import main

    data = write_pictures(folder / "pictures")
    before, sys.argv = sys.argv, ["ssl-mae", "train", "--data", str(data), "--out", str(folder / "run"), *SHORT]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return walk(main, arrived)
    finally:
        sys.argv = before


def to_first_pass(folder: Path) -> list[tuple[str, str]]:
    """From `ssl-mae train` to the first forward pass, that of the estimate."""
    return train(folder, lambda function, waiting: function == "MAE.forward")


def to_training(folder: Path) -> list[tuple[str, str]]:
    """From `ssl-mae train` to the first forward pass of the loop."""
    return train(folder, lambda function, waiting: function == "MAE.forward" and "ssl_train/fit.py" in waiting)


def to_loss(folder: Path) -> list[tuple[str, str]]:
    """From a file of a folder to the loss."""
    import numpy as np

    from ssl_core.method import load
    from ssl_mae.config import RECIPES
    from ssl_train.data.loader import collate

    recipe = RECIPES["mae"]
    config = recipe.preset("demo")
    source = load(recipe.source)(write_pictures(folder / "pictures"), config=config, split="train")
    view, method = load(recipe.views)(config), load(recipe.method)(config)
    return walk(lambda: method(collate([view(source.load(0), np.random.default_rng(0))]), 0.0))


WALKS = {
    "ssl-mae train to the first forward pass": to_first_pass,
    "ssl-mae train to the first step of the loop": to_training,
    "a file of a folder to the loss": to_loss,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show every entry")
    args = parser.parse_args()
    for name, follow in WALKS.items():
        with tempfile.TemporaryDirectory() as folder:
            entries = follow(Path(folder))
        files, returns = counts(entries)
        print(f"{name}: {files} files, {returns} returns")
        seen: set[str] = set()
        for file, function in entries if args.list else ():
            print(f"  {'<' if file in seen else ' '} {file:36} {function}")
            seen.add(file)


if __name__ == "__main__":
    main()
