"""A stranger's folder: Debian's clip art, as a folder of classes.

    python tools/clipart.py clipart              every category of 100 pictures or more
    python tools/clipart.py clipart --most 300   at most so many pictures of each

It downloads the package `openclipart-png` with apt-get, unpacks it beside, and makes
`clipart/<category>/<number>.png`. The pictures are links, as they came: RGBA, palette, grey, of any
size. They are not part of this project.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

PACKAGE = "openclipart-png"
FEWEST = 100
LEFT_OUT = {"unsorted"}


def unpacked(beside: Path) -> Path:
    """The package's pictures, downloaded into `beside` if they are not there."""
    pictures = beside / "usr/share/openclipart/png"
    if not pictures.is_dir():
        beside.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=beside, check=True)
        (archive,) = beside.glob(f"{PACKAGE}*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=beside, check=True)
    return pictures


def link(pictures: Path, out: Path, most: int | None) -> dict[str, int]:
    """Category -> number of its pictures in `out`."""
    counts = {}
    for category in sorted(path for path in pictures.iterdir() if path.name not in LEFT_OUT):
        files = sorted(category.rglob("*.png"))
        if len(files) < FEWEST:
            continue
        # an even share of the sub-folders, in which pictures look alike
        chosen = files if most is None else files[:: max(1, -(-len(files) // most))]
        (out / category.name).mkdir(parents=True, exist_ok=True)
        for i, file in enumerate(chosen):
            target = out / category.name / f"{i:04d}.png"
            if not target.is_symlink():
                target.symlink_to(file.resolve())
        counts[category.name] = len(chosen)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--most", type=int, help="pictures of a category")
    args = parser.parse_args()
    counts = link(unpacked(args.out.with_name(f"{PACKAGE}-files")), args.out, args.most)
    print(f"{sum(counts.values()):,} pictures in {args.out}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))


if __name__ == "__main__":
    main()
